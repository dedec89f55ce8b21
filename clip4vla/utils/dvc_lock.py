"""DVC's own lock file: removed where a DVC that was killed while it wrote it has left half a file.

In: the project's directory. DVC writes `.dvc/tmp/rwlock`, which stage uses which files, in place; half a file would
stop every later `dvc repro`.
"""

import json
import logging
import time
from contextlib import suppress
from pathlib import Path

log = logging.getLogger(__name__)

RWLOCK = Path(".dvc/tmp/rwlock")
WRITING_S = 5.0
"""Far longer than DVC takes to write the file: half a file as old as this has no writer."""


def remove_torn_lock(root: Path = Path()) -> None:
    """Remove the lock file of the project at `root` if it is half a file and nobody is writing it."""
    path = root / RWLOCK
    with suppress(FileNotFoundError):  # a DVC that has just ended has removed it
        if has_torn_lock(root) and time.time() - path.stat().st_mtime > WRITING_S:
            path.unlink()
            log.warning("removed %s, of which a killed DVC had left half", path)


def has_torn_lock(root: Path = Path()) -> bool:
    """Whether the lock file of the project at `root` is half a file."""
    try:
        return not isinstance(json.loads((root / RWLOCK).read_bytes()), dict)
    except FileNotFoundError:
        return False
    except ValueError:
        return True
