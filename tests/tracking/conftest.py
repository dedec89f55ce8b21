"""A store for every test of tracking."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from clip4vla.tracking.store import PASSWORD_VARIABLE, URI_VARIABLE, USER_VARIABLE, open_client


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests write to their own folders, whatever the environment."""
    for name in (URI_VARIABLE, USER_VARIABLE, PASSWORD_VARIABLE, "DVC_ROOT"):
        monkeypatch.setenv(name, "")  # so that what a test's code sets is undone
        monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def made_together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[subprocess.CompletedProcess[str]]]:
    """A store that three processes made at once, in a folder where an earlier attempt was killed half-way."""
    root = tmp_path_factory.mktemp("project")
    (root / "mlruns").mkdir()
    (root / "mlruns" / "mlflow.db.unfinished").write_bytes(b"half a database")
    code = "from pathlib import Path; from clip4vla.tracking.store import prepare_store; prepare_store(Path())"
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    ended = []
    for process in started:
        _, errors = process.communicate(timeout=240)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, "", errors))
    return root, ended


@pytest.fixture
def root(made_together: tuple[Path, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a store of its own."""
    shutil.copytree(made_together[0] / "mlruns", tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def client(root: Path) -> MlflowClient:
    return open_client(root)
