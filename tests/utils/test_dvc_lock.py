"""DVC's lock file, half written, just being written, whole, and as DVC itself reads it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip4vla.utils.dvc_lock import RWLOCK, WRITING_S, remove_torn_lock


def write(root: Path, content: str, age: float) -> Path:
    path = root / RWLOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.mark.parametrize("content", ["", '{"/a/b": {"read": [{"pid": 1', "[]", "\x00\x00"])
def test_half_a_file_without_a_writer_is_removed_with_a_warning(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path, content, age=WRITING_S + 1)
    remove_torn_lock(tmp_path)
    assert not path.exists()
    assert "of which a killed DVC had left half" in caplog.text


@pytest.mark.parametrize(
    ("content", "age"),
    [("", 0.0), ('{"/a', 0.0), ("{}", 100.0), ('{"/a/b": {"write": {"pid": 1, "cmd": "x"}}}', 100.0)],
)
def test_a_whole_file_and_one_that_is_being_written_stay(tmp_path: Path, content: str, age: float) -> None:
    path = write(tmp_path, content, age)
    remove_torn_lock(tmp_path)
    assert path.read_text() == content


def test_without_a_file_nothing_happens(tmp_path: Path) -> None:
    remove_torn_lock(tmp_path)


def test_dvc_goes_on_after_it(tmp_path: Path) -> None:
    def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert dvc("init", "--no-scm").returncode == 0
    (tmp_path / "dvc.yaml").write_text("stages: {one: {cmd: echo done}}")
    write(tmp_path, '{"', age=WRITING_S + 1)
    assert "rwlock" in dvc("repro").stderr
    remove_torn_lock(tmp_path)
    assert dvc("repro").returncode == 0
