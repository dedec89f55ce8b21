"""`python -m clip4vla.training.worker SPEC.json`: one rank of a training, as the launcher starts it."""

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from clip4vla.training.spec import TrainSpec
from clip4vla.utils.supervise import exit_with_parent
from clip4vla.utils.threads import spin_briefly

REFUSED = os.EX_DATAERR
"""Exit status of a rank that can't train by its spec, or whose losses are not finite: trying again doesn't help."""

STOPPED = 128 + signal.SIGTERM
"""Exit status of a training that was asked to stop and left a checkpoint."""


def _share_cores() -> None:
    """Set the threads of each rank to its share of the cores, unless the environment sets them; before torch starts."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))


def _leave(status: int) -> NoReturn:
    """Exit without finalising the interpreter, where a library's thread that still runs can abort the process."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> NoReturn:
    """Train by the spec file on the command line."""
    exit_with_parent()
    _share_cores()
    spin_briefly()
    from clip4vla.training.trainer import train

    try:
        train(TrainSpec.read(Path(sys.argv[1])))
    except ValueError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        _leave(REFUSED)
    except SystemExit as stopped:
        _leave(stopped.code if isinstance(stopped.code, int) else 1)
    except BaseException:
        traceback.print_exc()
        _leave(1)
    _leave(0)


if __name__ == "__main__":
    main()
