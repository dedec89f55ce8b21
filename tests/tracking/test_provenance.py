"""Git revision, dvc.lock, hardware, and the tags of MLflow's source columns."""

import getpass
import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clip4vla.tracking.provenance import git_revision, provenance, source_tags


def test_git_revision_marks_uncommitted_changes(tmp_path: Path) -> None:
    def git(*command: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *command], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    clean = git_revision(tmp_path)
    assert len(clean) == 40
    (tmp_path / "file").write_text("two")
    assert git_revision(tmp_path) == f"{clean}-dirty"
    assert source_tags(tmp_path, f"{clean}-dirty")["mlflow.source.git.commit"] == clean


def test_provenance_pins_code_data_and_machine(tmp_path: Path) -> None:
    assert provenance(tmp_path)["dvc_lock"] == "none"
    (tmp_path / "dvc.lock").write_text("stages: {}")
    found = provenance(tmp_path)
    assert found["git_revision"] == "unknown"
    assert found["dvc_lock"] == hashlib.sha256(b"stages: {}").hexdigest()
    assert " x " in found["hardware"]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["/opt/bin/clip4vla", "evaluate", "retrieval"], "clip4vla evaluate retrieval"),
        (["/opt/lib/clip4vla/__main__.py", "pretrain"], "clip4vla pretrain"),
        (["ROOT/flows/pretrain.py"], "flows/pretrain.py"),
        (["/elsewhere/train.py", "two words"], "train.py 'two words'"),
    ],
)
def test_a_run_is_named_by_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], name: str
) -> None:
    monkeypatch.setattr(sys, "argv", [arguments[0].replace("ROOT", str(tmp_path)), *arguments[1:]])
    tags = source_tags(tmp_path, "unknown")
    assert tags["mlflow.source.name"] == name
    assert "mlflow.source.git.commit" not in tags


def test_an_account_without_a_name_is_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    assert source_tags(tmp_path, "unknown")["mlflow.user"] == str(os.getuid())
