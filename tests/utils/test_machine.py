"""What a machine has left, and that it gets back what is freed."""

import ctypes
import subprocess
import sys

import pytest

FREED = """
import ctypes
import sys
import numpy as np
from clip4vla.utils.machine import own_memory, return_freed_memory
MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1
ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 32 << 20)  # what glibc can learn by itself, where nothing forbids it
ctypes.CDLL(None).mallopt(TRIM_THRESHOLD, 1 << 30)
if sys.argv[1] == "returns":
    return_freed_memory()
before = own_memory()
blocks = [np.ones(10_000_000, np.uint8) for _ in range(40)]
pins = [np.ones(200_000, np.uint8) for _ in range(4)]  # behind the blocks, so that the heap can't shrink
del blocks
print(own_memory() - before)
"""


def test_the_peak_is_that_of_the_process_and_not_of_the_one_that_started_it() -> None:
    """Of half a gigabyte that the outer process has, and 200 MB that the inner one has had."""
    inner = "from clip4vla.utils.machine import peak_memory; x = b'x' * 200_000_000; del x; print(peak_memory())"
    outer = f"import subprocess, sys; x = b'x' * 500_000_000; subprocess.run([sys.executable, '-c', {inner!r}])"
    done = subprocess.run([sys.executable, "-c", outer], capture_output=True, check=True, text=True)
    assert 200_000_000 < int(done.stdout) < 400_000_000


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_goes_back_to_the_system_only_when_asked_to() -> None:
    kept = {}
    for mode in ("keeps", "returns"):
        command = [sys.executable, "-c", FREED, mode]
        kept[mode] = int(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert kept["returns"] < 20_000_000
    assert kept["keeps"] > 200_000_000
