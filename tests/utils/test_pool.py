"""Workers work, begin with what they are given, and end with their parent, even one that is killed as they start."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from clip4vla.utils.pool import process_pool
from tests.utils.test_supervise import ENVIRONMENT

_given: list[str] = []


def begin(word: str) -> None:
    _given.append(word)


def answer(number: int) -> str:
    return f"{_given[0]} {number}"


def test_workers_begin_with_what_they_are_given() -> None:
    with process_pool(2, begin, ("clip",)) as pool:
        assert list(pool.map(answer, range(3))) == ["clip 0", "clip 1", "clip 2"]


@pytest.mark.parametrize("idle_s", [0.0, 3.0])
def test_workers_end_when_their_parent_is_killed(tmp_path: Path, idle_s: float) -> None:
    code = (
        "import time; from clip4vla.utils.pool import process_pool\n"
        "if __name__ == '__main__':\n"
        "    pool = process_pool(2)\n"
        "    futures = [pool.submit(time.sleep, 0) for _ in range(4)]\n"
        f"    open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(100)\n"
    )
    (tmp_path / "parent.py").write_text(code)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], env=ENVIRONMENT)
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    time.sleep(idle_s)
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert workers
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
