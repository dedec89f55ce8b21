"""Backup and restore of `mlruns`, by the very commands of docs/operations.md."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.project import REPOSITORY, environment

CANDIDATES = """
from pathlib import Path; from tests.candidates import make_candidate, promote
for number in {}: make_candidate(Path.cwd(), number); promote()
"""


def documented(title: str) -> str:
    """The commands of docs/operations.md under a comment that begins with `title`."""
    text = (REPOSITORY / "docs/operations.md").read_text(encoding="utf-8")
    [block] = re.findall(rf"^```sh\n# {title}[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return str(block)


def call(project: Path, *command: str) -> str:
    variables = environment() | {"PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(command, cwd=project, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def promote_candidates(project: Path, *numbers: int) -> None:
    call(project, sys.executable, "-c", CANDIDATES.format(numbers))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a champion, and one that it replaced."""
    directory = tmp_path / "project"
    directory.mkdir()
    shutil.copy(REPOSITORY / "params.yaml", directory)
    promote_candidates(directory, 1, 2)
    return directory


def test_a_store_that_was_lost_is_restored_elsewhere_with_its_champion(project: Path, tmp_path: Path) -> None:
    before = call(project, sys.executable, "-m", "clip4vla", "champion")
    call(project, "sh", "-ec", documented("back up mlruns"))
    promote_candidates(project, 11)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(REPOSITORY / "params.yaml", elsewhere)
    shutil.copytree(project / "backup", elsewhere / "backup")
    shutil.rmtree(project)
    (elsewhere / "mlruns").mkdir()
    (elsewhere / "mlruns/mlflow.db-wal").write_bytes(b"left over")
    call(elsewhere, "sh", "-ec", documented("restore mlruns"))
    assert call(elsewhere, sys.executable, "-m", "clip4vla", "champion") == before
    assert "version 1 is the champion again" in call(elsewhere, sys.executable, "-m", "clip4vla", "rollback")
    promote_candidates(elsewhere, 3)
