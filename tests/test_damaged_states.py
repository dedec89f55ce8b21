"""Damaged files of a project, by file and kind of damage: a short message, and nothing else changes.

A project has a champion, the version that it replaced, and a candidate. One file is damaged; then the command that
reads it is run. Afterwards the registry is as it was, and every other file is there, unchanged.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking._tracking_service import utils
from safetensors.torch import load_file

from clip4vla.__main__ import main
from clip4vla.registry.registry import Registry
from clip4vla.tracking.store import open_client
from tests.candidates import make_candidate
from tests.project import REPOSITORY, environment

NAME = "clip4vla"
PROMOTE, ROLLBACK, CHAMPION, INDEX = ["promote", "retrieval"], ["rollback"], ["champion"], ["index", "media"]
STORE = ("mlruns/mlflow.db", "mlruns/.lock", "mlruns/.schema")
"""Files that opening the store may change."""


def missing(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    replace(path, b"")


def cut(path: Path) -> None:
    replace(path, path.read_bytes()[: path.stat().st_size // 2])


def noise(path: Path) -> None:
    replace(path, bytes((7 * place + 128) % 256 for place in range(path.stat().st_size)))


def another(path: Path) -> None:
    replace(path, b"[]")


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace(path: Path, content: bytes) -> None:
    path.unlink()  # the project's other copies share the file
    path.write_bytes(content)


DAMAGES: tuple[Callable[[Path], None], ...] = (missing, empty, cut, noise, another, folder)


def version_file(version: str, file: str) -> str:
    """A file of the model of version 1 (replaced) or 2 (champion), which the registry keeps."""
    return f"version {version}: {file}"


def states() -> Iterator[tuple[str, list[str]]]:
    """A file, and the command that reads it."""
    yield "params.yaml", CHAMPION
    for file in ("model.safetensors", "config.json", "run.json"):
        yield f"runs/retrieval/{file}", PROMOTE
    for file in ("scores.json", "ranks.parquet"):
        yield f"runs/evaluations/retrieval/{file}", PROMOTE
    for file in ("model.safetensors", "config.json"):
        yield version_file("1", file), ROLLBACK
        yield version_file("2", file), INDEX


CASES = [
    pytest.param(file, damage, command, id=f"{file}, {damage.__name__}")
    for file, command in states()
    for damage in DAMAGES
]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A champion, version 2, which replaced version 1, and a better candidate."""
    root = tmp_path_factory.mktemp("healthy")
    shutil.copy(REPOSITORY / "params.yaml", root)
    (root / "media").mkdir()
    (root / "media/one.mp4").write_bytes(b"whatever")
    with pytest.MonkeyPatch.context() as patch:
        outside(patch, root)
        for number in (1, 2, 30):
            make_candidate(root, number)
            if number != 30:
                run(PROMOTE)
        assert state_of_registry(root) == {"aliases": {"champion": "2", "previous": "1"}, "versions": ["1", "2"]}
    return root


@pytest.fixture
def project(healthy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it; files share their content until they are replaced."""
    root = tmp_path / "project"
    shutil.copytree(healthy, root, copy_function=os.link)
    for file in STORE:
        shutil.copy(healthy / file, root / "copy")
        (root / "copy").replace(root / file)
    utils._artifact_repos_cache.clear()  # MLflow remembers by run where artifacts are, and copies share runs
    outside(monkeypatch, root)
    return root


def outside(patch: pytest.MonkeyPatch, root: Path) -> None:
    for name in ("MLFLOW_TRACKING_URI", "DVC_ROOT"):
        patch.delenv(name, raising=False)
    patch.chdir(root)


def run(command: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(command)


def state_of_registry(root: Path) -> dict[str, Any]:
    client = open_client(root)
    versions = client.search_model_versions(f"name = '{NAME}'")
    return {
        "aliases": {name: str(version) for name, version in client.get_registered_model(NAME).aliases.items()},
        "versions": sorted(str(version.version) for version in versions),
    }


def path_of(project: Path, file: str) -> Path:
    version, _, name = file.partition(": ")
    if not name:
        return project / file
    found = open_client(project).get_model_version(NAME, version.removeprefix("version "))
    model = str(found.source).removeprefix("models:/")
    return project / "mlruns/artifacts/retrieval/models" / model / "artifacts/artifacts" / name


def contents(project: Path, but: Path) -> dict[Path, bytes]:
    left_out = {but, *(project / file for file in STORE)}
    return {path: path.read_bytes() for path in project.rglob("*") if path.is_file() and path not in left_out}


def test_there_are_66_states_and_without_damage_each_command_reads_its_file(project: Path) -> None:
    assert len(CASES) + len(DAMAGES) >= 66
    run(CHAMPION)
    run(PROMOTE)
    assert state_of_registry(project)["aliases"] == {"champion": "3", "previous": "2"}
    run(ROLLBACK)
    assert state_of_registry(project)["aliases"] == {"champion": "2", "previous": "1"}
    run(ROLLBACK)
    assert state_of_registry(project)["aliases"] == {"champion": "1"}


@pytest.mark.parametrize(("file", "damage", "command"), CASES)
def test_a_damaged_file_is_one_short_message_and_nothing_else_changes(
    project: Path, file: str, damage: Callable[[Path], None], command: list[str]
) -> None:
    path = path_of(project, file)
    before, others = state_of_registry(project), contents(project, path)
    kept = project.parent / "kept"
    shutil.copy(path, kept)
    damage(path)
    with pytest.raises(SystemExit) as ended:
        main(command)
    message = str(ended.value)
    assert message.startswith("clip4vla: ")
    assert len(message.splitlines()) <= 3
    if path.is_dir():
        path.rmdir()
    kept.replace(path)
    assert contents(project, path).items() >= others.items(), "every other file is as it was"
    assert state_of_registry(project) == before
    assert Registry(project).champion_version(NAME) == "2"
    assert load_file(path_of(project, version_file("2", "model.safetensors")))
    run(PROMOTE)  # with the file as it was, everything goes on
    assert state_of_registry(project)["aliases"] == {"champion": "3", "previous": "2"}


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_database_is_one_short_message_and_put_back_it_has_its_champion(
    project: Path, damage: Callable[[Path], None]
) -> None:
    """Each command is a process of its own: MLflow keeps a database open."""
    path, kept = project / "mlruns/mlflow.db", project.parent / "kept"
    shutil.copy(path, kept)
    others = contents(project, path)
    damage(path)
    variables = environment() | {"PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "-m", "clip4vla", "champion"]
    done = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    said = [line for line in done.stderr.splitlines() if not line.startswith("20")]
    assert said[0].startswith("clip4vla: ")
    assert len(said) <= 3
    assert contents(project, path).items() >= others.items()
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    kept.replace(path)
    healthy = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, check=True)
    assert "version 2" in healthy.stdout
