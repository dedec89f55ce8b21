"""Files and directories that are either complete or absent: written beside their place, moved there by one rename.

In: a path. Out: a temporary path to write to. What was written is on the disk before the rename, so that a kill or a
power cut at any moment leaves either the old content or the new one.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path` that takes its place when the block ends without an error.

    It is removed when the block fails; what a killed process left behind is removed by the next one. An old directory
    is removed just before the rename: a kill between the two leaves none.
    """
    partial = _partial(path)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        sync_directory(partial)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(path, ignore_errors=True)
    partial.replace(path)
    sync(path.parent)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; the file takes its place when the block ends without an error.

    It is removed when the block fails; what a killed process left behind is overwritten by the next one. Its mode
    is that of any new file, also where the library that writes it creates files with mode 600.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(path)
    partial.unlink(missing_ok=True)
    partial.touch()
    mode = partial.stat().st_mode
    try:
        yield partial
        partial.chmod(mode)
        sync(partial)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)
    sync(path.parent)


def sync_directory(path: Path) -> None:
    """Wait until all files and directories under `path` are on the disk."""
    for directory, _, names in os.walk(path):
        for name in names:
            sync(Path(directory, name))
        sync(Path(directory))


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: it isn't JSON, or has a number that isn't finite; the message names the file.
        FileNotFoundError: there is none.
    """

    def finite(number: str) -> float:
        if math.isfinite(value := float(number)):  # 1e999 isn't, either
            return value
        raise ValueError(f"it has the number {number}, which isn't finite")

    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=finite, parse_float=finite)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} can't be read: {error}") from error


def write_json(path: Path, tree: Any) -> None:
    """Write `tree` as indented UTF-8 JSON, atomically.

    Raises:
        ValueError: a number in it is NaN or infinite, which JSON does not have; the message names file and place.
    """
    try:
        text = json.dumps(tree, indent=2, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        reasons = [f"{place} is {number}, which JSON cannot hold" for place, number in _not_finite(tree)]
        raise ValueError(f"{path}: {reasons[0] if reasons else error}") from error
    with atomic_file(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")


def file_state(path: Path) -> list[int] | None:
    """Size in bytes and the moments (ns) at which content and entry of a file changed; None where there is none."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _partial(path: Path) -> Path:
    return path.with_name(f".{path.name}.partial")


def sync(path: Path) -> None:
    """Wait until the content of a file, or the names in a directory, are on the disk."""
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_finite(tree: Any, place: str = "") -> Iterator[tuple[str, float]]:
    """Places such as `metrics.loss[2]` and their numbers that JSON cannot hold."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield from _not_finite(value, f"{place}.{key}" if place else str(key))
    elif isinstance(tree, list | tuple):
        for index, value in enumerate(tree):
            yield from _not_finite(value, f"{place}[{index}]")
    elif isinstance(tree, float) and not math.isfinite(tree):
        yield place or "the value", tree
