"""The order of the test files, those of minutes first, so that parallel workers end at about the same time; the device.

Only the tests marked `gpu` see a GPU; all others compute on the CPU on every machine.
"""

import os
from pathlib import Path

import pytest

LONGEST = (
    "test_pipeline.py",
    "test_own_folder.py",
    "training/test_engine.py",
    "test_backup.py",
    "test_main.py",
    "training",
)
"""Files and folders of this one, the longest first."""


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs, unless the tests of a GPU are asked for."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the files of `LONGEST` to the front; the order within a file stays."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    path = item.path.relative_to(Path(__file__).parent).as_posix()
    return next(
        (rank for rank, name in enumerate(LONGEST) if path == name or path.startswith(f"{name}/")), len(LONGEST)
    )
