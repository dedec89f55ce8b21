"""Scores of a registered model on others' data: printed, written, and added to the run that trained it."""

import json
from pathlib import Path

import pytest

from clip4vla.__main__ import main
from clip4vla.evaluation.scores import Scores
from clip4vla.registry.registry import Registry
from clip4vla.tracking.records import read_training
from clip4vla.tracking.store import open_client
from tests.inference.tiny import expert_model, tiny_model, write_video
from tests.release.conftest import NAME, Promote


def metrics(root: Path, version: str) -> dict[str, float]:
    run_id = Registry(root).describe(NAME, version).run_id
    return dict(open_client(root).get_run(run_id).data.metrics)


def test_sounds_of_a_folder_are_classified(
    promote: Promote, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = promote(expert_model())
    (tmp_path / "media").mkdir()
    for number in range(4):
        write_video(tmp_path / f"media/{number}.mp4", number)
    (tmp_path / "labels").mkdir()
    rows = [f"{number}.mp4,{'bell' if number % 2 else 'dog'},{'test' if number else 'train'}" for number in range(4)]
    (tmp_path / "labels/toy.csv").write_text("\n".join(["path,text,split", *rows, ""]))
    command = ["benchmark", "classification", str(tmp_path / "labels"), str(tmp_path / "media"), "--name", "toy"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "--model", f"models:/{NAME}/{version}", "--split", "test"])
    assert ended.value.code in (None, 0)
    scores = Scores.read(Path("runs/benchmarks/toy"))
    assert len(scores.samples["zero_shot/accuracy"].clip_ids) == 3
    assert "zero_shot/accuracy" in capsys.readouterr().out
    logged = metrics(root, version)
    assert logged["toy/zero_shot/mAP"] == pytest.approx(scores.values["zero_shot/mAP"])
    tags = read_training(root, Registry(root).describe(NAME, version).run_id).tags
    assert tags["toy.prompt"] == "the sound of {}"


def test_main_scores_of_mteb_are_added_to_the_run(
    promote: Promote, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mteb")
    from tests.evaluation.test_mteb_model import TEXTS, classification_task, sound

    version = promote(tiny_model())
    files = {"audio": [{"bytes": sound(seed), "path": f"{seed}.wav"} for seed in range(len(TEXTS))]}
    monkeypatch.setattr("clip4vla.evaluation.mteb_model.find_tasks", lambda _names: [classification_task(files)])
    out, model = str(tmp_path / "mteb"), f"models:/{NAME}@champion"
    with pytest.raises(SystemExit) as ended:
        main(["benchmark", "mteb", "--tasks", "ToyAudioClassification", "--out", out, "--model", model])
    assert ended.value.code in (None, 0)
    file = tmp_path / f"mteb/results/clip4vla__{NAME}/{version}/ToyAudioClassification.json"
    written = json.loads(file.read_text())["scores"]["test"][0]["main_score"]
    assert metrics(root, version)["mteb/ToyAudioClassification/test/main_score"] == pytest.approx(written, abs=1e-6)
