"""`clip4vla prune`: remove what accumulates and nothing needs any more.

In: the registry, the checkpoints and DVC's cache of the project. Out: what was removed, or would be, with its size.
Data and models of the working directory, of the last commit of each branch, of tags and of experiments stay.
"""

import os
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from clip4vla.config import load_config
from clip4vla.pipeline.project import CHECKPOINTS, ROOT
from clip4vla.pipeline.training import KEPT
from clip4vla.records import TASKS
from clip4vla.registry.registry import Registry

GC = ("gc", "--workspace", "--all-branches", "--all-tags", "--all-experiments", "--force")
"""What `dvc gc` keeps: never less than a clone can bring back by `git checkout BRANCH && dvc checkout`."""
FINGERPRINT = re.compile("[0-9a-f]{16}")


@dataclass(frozen=True)
class Removal:
    """Something that was removed, or would be."""

    what: str
    size: int
    """Bytes."""


def prune(keep: int, carry_out: bool) -> Iterator[Removal]:
    """Remove old versions, left-over checkpoints and unused data of DVC's cache, one after the other.

    Args:
        keep: how many of the newest versions of each registered model stay, beside champion and previous champion.
        carry_out: whether to remove anything; otherwise only find it.

    Raises:
        RuntimeError: DVC can't clean its cache; the message is DVC's.
    """
    yield from _versions(keep, carry_out)
    yield from _checkpoints(carry_out)
    yield from _cache(carry_out)


def _versions(keep: int, carry_out: bool) -> Iterator[Removal]:
    gates, registry = load_config().gates, Registry(ROOT)
    for name in dict.fromkeys(gates.of(task).model_name for task in TASKS):
        found = registry.remove_old_versions(name, keep) if carry_out else registry.old_versions(name, keep)
        for old in found:
            yield Removal(f"{old.name} version {old.version}", old.size)


def _checkpoints(carry_out: bool) -> Iterator[Removal]:
    """Checkpoints and kept results of trainings that another one has followed, with other data or settings."""
    folders = sorted(Path(folder) for folder, _, _ in os.walk(CHECKPOINTS))
    for training, states in groupby(filter(_is_of_a_training, folders), key=lambda path: path.parent):
        *older, _ = sorted(states, key=_last_change)
        is_kept = training.is_relative_to(KEPT)
        kind, folder = ("finished training", KEPT) if is_kept else ("checkpoints of", CHECKPOINTS)
        for path in older:
            yield Removal(f"{kind} {path.relative_to(folder)}", _size(path))
            if carry_out:
                shutil.rmtree(path)


def _cache(carry_out: bool) -> Iterator[Removal]:
    """Objects of DVC's cache that nothing names; the remote is left alone."""
    listed = _dvc(*GC, "--dry")
    files = [Path(path) for path in re.findall(r"^Removing (.+)$", listed, re.MULTILINE)]
    if files:
        size = sum(file.lstat().st_size for file in files if file.is_file())
        if carry_out:
            _dvc(*GC)
        yield Removal(f"unused files of DVC's cache ({len(files):,})", size)


def _dvc(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "dvc", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"`dvc {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def _is_of_a_training(folder: Path) -> bool:
    return FINGERPRINT.fullmatch(folder.name) is not None


def _last_change(directory: Path) -> float:
    return max((found.st_mtime for found in _states(directory)), default=0.0)


def _size(directory: Path) -> int:
    return sum(found.st_size for found in _states(directory) if stat.S_ISREG(found.st_mode))


def _states(directory: Path) -> Iterator[os.stat_result]:
    """Of the directory and all in it, but for what a training that goes on removes meanwhile."""
    for folder, _, files in os.walk(directory):
        for path in (Path(folder), *(Path(folder, file) for file in files)):
            with suppress(FileNotFoundError):
                yield path.lstat()
