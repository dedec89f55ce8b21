"""What this machine has left."""

import ctypes
import re
import resource
import shutil
import sys
from pathlib import Path

import psutil

_MMAP_THRESHOLD = -3
"""mallopt's name of that setting."""


def available_memory() -> int:
    """Bytes that processes can still get without others being swapped out."""
    return int(psutil.virtual_memory().available)


def own_memory() -> int:
    """Bytes of memory that this process has."""
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """Most bytes of memory that this process has had at once.

    On Linux `ru_maxrss` is at least what the process had that started this one; the kernel's own mark, which a few
    sandboxes lack, is not.
    """
    is_linux = sys.platform.startswith("linux")
    status = Path("/proc/self/status").read_text(encoding="utf-8") if is_linux else ""
    if (mark := re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)) is not None:
        return int(mark[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1024 if is_linux else 1)


def return_freed_memory(from_bytes: int = 1 << 20) -> None:
    """From now on blocks of `from_bytes` or more go back to the system when they are freed.

    glibc otherwise learns to keep blocks of up to 32 MB for later, gigabytes in a training step. Nothing is done where
    the C library is another.
    """
    if sys.platform.startswith("linux") and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, from_bytes)


def free_disk(path: Path) -> int:
    """Bytes that can still be written where `path` is, or would be made."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
