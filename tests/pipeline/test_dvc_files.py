"""DVC's files cut off, being written, and whole; and DVC itself going on after the repair."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from clip4vla.pipeline.dvc_files import KEPT, LOCK, RWLOCK, WRITING_S, keep_lock, repair

WHOLE = "schema: '2.0'\nstages:\n  one:\n    cmd: echo done\n"
EARLIER = "schema: '2.0'\n"


def write(path: Path, content: str, age: float = WRITING_S + 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    os.utime(path, (time.time() - age, time.time() - age))
    return path


@pytest.mark.parametrize("content", ["", '{"/a/b": {"read": [{"pid": 1', "[]", "\x00\x00"])
def test_an_rwlock_that_is_cut_off_is_removed(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / RWLOCK, content)
    repair(tmp_path)
    assert not path.exists()
    assert "cut off by a kill of DVC" in caplog.text


@pytest.mark.parametrize("content", ["", *(WHOLE[:cut] for cut in (1, 9, 20, 35, len(WHOLE) - 1)), "- a\n", "\x00"])
@pytest.mark.parametrize("kept", [True, False])
def test_a_lock_that_is_cut_off_is_that_of_before_the_last_stage(tmp_path: Path, content: str, kept: bool) -> None:
    if kept:
        write(tmp_path / LOCK, EARLIER)
        (tmp_path / KEPT).parent.mkdir(parents=True)
        keep_lock(tmp_path)
    path = write(tmp_path / LOCK, content)
    repair(tmp_path)
    assert (path.read_text() if path.exists() else None) == (EARLIER if kept else None)


@pytest.mark.parametrize(
    ("name", "content", "age"),
    [
        (RWLOCK, "{}", 100.0),
        (RWLOCK, '{"/a/b": {"write": {"pid": 1, "cmd": "x"}}}', 100.0),
        (LOCK, WHOLE, 100.0),
        (LOCK, EARLIER, 100.0),
    ],
)
def test_whole_files_stay(tmp_path: Path, name: Path, content: str, age: float) -> None:
    path = write(tmp_path / name, content, age)
    repair(tmp_path)
    assert path.read_text() == content


@pytest.mark.parametrize(("name", "content"), [(RWLOCK, '{"/a": {}}'), (LOCK, WHOLE)])
@pytest.mark.parametrize("cut", [0, 4])
def test_a_file_that_is_being_written_is_waited_for(tmp_path: Path, name: Path, content: str, cut: int) -> None:
    path = write(tmp_path / name, content[:cut], age=0.0)
    writer = threading.Timer(0.3, path.write_text, [content])
    writer.start()
    repair(tmp_path)
    assert path.read_text() == content
    writer.join()


@pytest.mark.parametrize("name", [RWLOCK, LOCK])
@pytest.mark.parametrize("age", [0.0, -1000.0], ids=["just now", "by a clock that is ahead"])
def test_a_file_whose_writer_was_just_killed_is_repaired_after_a_while(
    tmp_path: Path, name: Path, age: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip4vla.pipeline.dvc_files.WRITING_S", 0.3)
    write(tmp_path / name, "", age)
    repair(tmp_path)
    assert not (tmp_path / name).exists()


def test_without_the_files_nothing_happens(tmp_path: Path) -> None:
    keep_lock(tmp_path)
    repair(tmp_path)
    assert not list(tmp_path.iterdir())


def test_dvc_goes_on_after_it(tmp_path: Path) -> None:
    def dvc(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "dvc", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    assert dvc("init", "--no-scm").returncode == 0
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  one: {cmd: echo > a, outs: [a]}\n  two: {cmd: echo > b, outs: [b]}\n"
    )
    assert dvc("repro", "one").returncode == 0
    keep_lock(tmp_path)
    assert dvc("repro", "two").returncode == 0
    write(tmp_path / LOCK, "")
    assert "dvc.lock" in dvc("repro").stderr
    write(tmp_path / RWLOCK, '{"')
    repair(tmp_path)
    done = dvc("repro")
    assert done.returncode == 0
    assert "Stage 'one' didn't change" in done.stdout
    assert "Stage 'two' is cached" in done.stdout or "Running stage 'two'" in done.stdout
