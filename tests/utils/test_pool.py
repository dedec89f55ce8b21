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


POOL = "import time; from clip4vla.utils.pool import process_pool\n"
POOL += "def begin():\n    pool = process_pool(2)\n    return [pool, *(pool.submit(time.sleep, 0) for _ in range(4))]\n"
FORKED = """
import multiprocessing, time; from clip4vla.utils.pool import end_with_parent
def work():
    end_with_parent()
    time.sleep(100)
def begin():
    processes = [multiprocessing.get_context("forkserver").Process(target=work) for _ in range(2)]
    for process in processes: process.start()
    return processes
"""


@pytest.mark.parametrize("idle_s", [0.0, 3.0])
@pytest.mark.parametrize("begin", [POOL, FORKED])
def test_workers_end_when_the_process_that_asked_for_them_is_killed(tmp_path: Path, begin: str, idle_s: float) -> None:
    code = f"{begin}if __name__ == '__main__':\n    kept = begin()\n"
    code += f"    open({str(tmp_path / 'begun')!r}, 'w').close(); time.sleep(100)\n"
    (tmp_path / "parent.py").write_text(code)
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")], env=ENVIRONMENT)
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    time.sleep(idle_s)
    workers = psutil.Process(parent.pid).children(recursive=True)
    assert len(workers) >= 2
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive
