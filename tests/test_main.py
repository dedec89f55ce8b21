"""The command line, on a registry with a tiny champion."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from sqlalchemy.exc import OperationalError

from clip4vla.__main__ import main
from clip4vla.evaluation.scores import Scores
from clip4vla.model.pretrained import save_model
from clip4vla.records import Decision
from clip4vla.registry import registry
from clip4vla.registry.registry import Registry
from clip4vla.tracking.run import start_run
from tests.inference.tiny import INFERENCE, tiny_model, write_video
from tests.project import REPOSITORY
from tests.registry.test_registry import scores

YES = Decision(True, ("pass: better",))


def run(arguments: list[str]) -> None:
    """Run a command that must succeed."""
    with pytest.raises(SystemExit, match="0"):
        main(arguments)


def register(root: Path, name: str, found: Scores) -> str:
    with start_run(root, "retrieval", name) as training:
        pass
    assert training.run_id is not None
    directory = root / "runs" / name
    save_model(tiny_model(), directory, INFERENCE)
    (directory / "run.json").write_text(json.dumps({"run_id": training.run_id}))
    (directory / "config.json").write_text(
        (directory / "config.json").read_text() + "\n" * len(name)
    )  # another content
    registry = Registry(root)
    version = registry.register(training.run_id, directory, found, "clip4vla")
    champion = registry.find_champion("clip4vla")
    assert registry.promote("clip4vla", version, YES, champion).promote
    return version


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions, the second one the champion, and a folder of media."""
    root = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("DVC_ROOT", raising=False)
        patch.chdir(root)
        register(root, "one", scores(40))
        register(root, "another", scores(60))
    (root / "media").mkdir()
    for seed in (1, 2, 3):
        write_video(root / f"media/{seed}.mp4", seed)
    return root


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(project)


def test_a_folder_is_indexed_by_the_champion_and_searched(capsys: pytest.CaptureFixture[str]) -> None:
    run(["index", "media", "--index", "index", "--model", "clip4vla"])
    said = capsys.readouterr().out
    assert "3 clips in index, by clip4vla version 2" in said
    assert "3 added, 0 kept, 0 removed, 0 left out" in said
    run(["search", "a cow moos", "--index", "index", "--top", "2", "--html", "found.html"])
    said = capsys.readouterr().out
    assert said.count(".mp4") == 2
    assert "in 3 clips, by clip4vla version 2" in said
    assert Path("found.html").read_text().count("<audio") == 2


def test_without_a_sentence_they_are_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(["index", "media", "--index", "index", "--model", "clip4vla"])
    typed = iter(["a cow", "a train", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    run(["search", "--index", "index", "--by", "audio"])
    said = capsys.readouterr().out
    assert "“a cow” in 3 clips" in said
    assert "“a train” in 3 clips" in said


def test_the_champion_is_shown_and_taken_back(capsys: pytest.CaptureFixture[str]) -> None:
    run(["champion", "clip4vla"])
    said = capsys.readouterr().out
    assert "clip4vla, champion" in said
    assert "version 2" in said
    assert "60.0" in said
    run(["rollback", "clip4vla"])
    assert "version 1 is the champion again; version 2 is rolled back" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="clip4vla: clip4vla has no champion before version 1"):
        main(["rollback", "clip4vla"])


COMMAND = """
import contextlib, sys
from clip4vla.__main__ import main
with contextlib.suppress(SystemExit):
    main(sys.argv[1:])
"""
OF_TRAINING_ALONE = {"open_clip", "torchvision", "transformers", "timm", "torch._dynamo", "mlflow", "scipy"}


def imported_by(code: str, *arguments: str) -> set[str]:
    """The modules that a new process has imported after running `code`."""
    code += "\nimport sys; print(*sys.modules, file=sys.stderr)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("command", "unused"),
    [
        (["--help"], {"torch", "numpy", "pydantic", "mlflow", "lance", "clip4vla.config"}),
        (["champion", "clip4vla"], {"torch", "mlflow", "sqlalchemy", "pandas", "lance", "av"}),
        (["search", "a cow", "--index", "index"], OF_TRAINING_ALONE | {"matplotlib"}),
    ],
    ids=["help", "champion", "search"],
)
def test_a_command_starts_without_what_it_does_not_need(command: list[str], unused: set[str]) -> None:
    if command[0] == "search":
        run(["index", "media", "--index", "index", "--model", "clip4vla"])
    imported = imported_by(COMMAND, *command)
    assert {"clip4vla.__main__", "typer"} <= imported
    assert imported & unused == set()


@pytest.mark.parametrize(
    ("part", "unused"),
    [("params", {"torch", "lance", "pandas", "mlflow", "scipy"}), ("evaluate", OF_TRAINING_ALONE)],
)
def test_a_stage_starts_without_what_it_does_not_need(part: str, unused: set[str]) -> None:
    imported = imported_by(f"import clip4vla.pipeline.{part}")
    assert "clip4vla.config" in imported
    assert imported & unused == set()


def test_mistakes_end_with_a_sentence() -> None:
    with pytest.raises(SystemExit, match="clip4vla: nothing has no champion yet"):
        main(["champion", "nothing"])
    with pytest.raises(SystemExit, match="clip4vla: there is no index in nowhere"):
        main(["search", "a cow", "--index", "nowhere"])
    with pytest.raises(SystemExit, match=r"clip4vla: .*params\.yaml"):
        main(["champion"])


def test_inspect_prints_a_json_line_for_each_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    base = REPOSITORY / "tests/data/media/base.mp4"
    with pytest.raises(SystemExit) as ended:
        main(["inspect", str(base), "none.mp4"])
    assert not ended.value.code
    used, missing = map(json.loads, capsys.readouterr().out.splitlines())
    fields = {"path", "reason", "duration_s", "frames", "audio_s", "audio_rms", "channels", "notes"}
    assert used.keys() == missing.keys() == fields
    assert (used["reason"], used["duration_s"], used["frames"], used["channels"]) == (None, 4.0, 12, 1)
    assert (missing["reason"], missing["frames"]) == ("missing", 0)


def test_an_error_of_the_database_behind_mlflow_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_root: Path) -> MlflowClient:
        raise OperationalError("SELECT 1", {}, ConnectionError("connection refused"))

    monkeypatch.setattr(registry, "open_client", away)
    with pytest.raises(SystemExit, match=r"^clip4vla: MLflow: .*connection refused.*$"):
        main(["rollback", "clip4vla"])
