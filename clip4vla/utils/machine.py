"""What this machine has left."""

import shutil
from pathlib import Path

import psutil


def available_memory() -> int:
    """Bytes that processes can still get without others being swapped out."""
    return int(psutil.virtual_memory().available)


def own_memory() -> int:
    """Bytes of memory that this process has."""
    return int(psutil.Process().memory_info().rss)


def free_disk(path: Path) -> int:
    """Bytes that can still be written where `path` is, or would be made."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free
