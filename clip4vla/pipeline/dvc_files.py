"""Two files that DVC writes in place: repaired where a DVC that was killed meanwhile has left them cut off.

In: the project's directory. `dvc.lock` says which stages are done, `.dvc/tmp/rwlock` which stage uses which files; cut
off, each would stop every later `dvc repro`. While a stage runs, DVC doesn't write `dvc.lock`, so each stage keeps a
copy when it begins.
"""

import json
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from clip4vla.config import read_yaml
from clip4vla.utils.files import atomic_file

log = logging.getLogger(__name__)

LOCK = Path("dvc.lock")
KEPT = Path(".dvc/tmp/dvc.lock.kept")
RWLOCK = Path(".dvc/tmp/rwlock")
WRITING_S = 5.0
"""Far longer than DVC takes to write either: a file that has been cut off for as long has no writer."""
POLL_S = 0.05


def keep_lock(root: Path = Path()) -> None:
    """Keep a copy of the `dvc.lock` of the project at `root`; called by a stage of DVC, which has just read it."""
    if (root / LOCK).is_file() and (root / KEPT).parent.is_dir():
        with atomic_file(root / KEPT) as partial:
            shutil.copyfile(root / LOCK, partial)


def repair(root: Path = Path()) -> None:
    """Put back a `dvc.lock` that is cut off as the last stage kept it, and remove an `rwlock` that is.

    DVC then runs the stage again, or restores the result, that the file was being written for. One that may still be
    written is waited for, for 5 seconds after its last change.

    Args:
        root: the project's directory.
    """
    if _is_left(root / LOCK, _is_lock):
        if (root / KEPT).is_file():
            with atomic_file(root / LOCK) as partial:
                shutil.copyfile(root / KEPT, partial)
        else:
            (root / LOCK).unlink()
        log.warning("%s was cut off by a kill of DVC: it is as it was before the last stage", root / LOCK)
    if _is_left(root / RWLOCK, _is_rwlock):
        (root / RWLOCK).unlink()
        log.warning("removed %s, which was cut off by a kill of DVC", root / RWLOCK)


def _is_left(path: Path, is_whole: Callable[[Path], bool]) -> bool:
    """Whether the file stays cut off: it is old, or nobody has written to it while this waited."""
    written, since = 0, 0.0
    try:
        while not is_whole(path):
            state = path.stat()
            if state.st_mtime_ns != written:
                written, since = state.st_mtime_ns, time.monotonic()
            if max(time.time() - state.st_mtime, time.monotonic() - since) > WRITING_S:
                return True
            time.sleep(POLL_S)
    except FileNotFoundError:  # a DVC that has just ended has removed it
        pass
    return False


def _is_lock(path: Path) -> bool:
    """Whether there is no such file, or a whole one."""
    try:
        content = read_yaml(path)
        return path.read_bytes().endswith(b"\n") and isinstance(content, dict) and "schema" in content
    except FileNotFoundError:
        return True
    except ValueError:
        return False


def _is_rwlock(path: Path) -> bool:
    """Whether there is no such file, or a whole one."""
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except FileNotFoundError:
        return True
    except ValueError:
        return False
