"""Outputs that are either whole or absent: written beside their place, moved there by one rename."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield an empty directory beside `path` that takes its place when the block ends without an error.

    What a killed run left behind is removed by the next one; a reader never sees half of it.
    """
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    shutil.rmtree(path, ignore_errors=True)
    partial.replace(path)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` to write to; it takes its place when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    yield partial
    partial.replace(path)


def write_json(path: Path, tree: Any) -> None:
    """Write `tree` as indented UTF-8 JSON, atomically."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(tree, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
