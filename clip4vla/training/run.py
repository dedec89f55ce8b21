"""`python -m clip4vla.training.run JOB.json`: one rank of a training, as the launcher starts it."""

import os
import sys
import threading
import time
from pathlib import Path

from clip4vla.training.job import Job

ORPHAN_CHECK_S = 1.0


def _end_with_parent() -> None:
    """End this rank when its launcher is gone: kill -9 of it would else leave it running for ever."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(ORPHAN_CHECK_S)
        print("the launcher is gone; this rank ends", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _share_cores() -> None:
    """Give each rank of this node its share of the cores, unless the environment says how many; before torch starts."""
    cores = len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores)))


def main() -> None:
    """Train as the job file on the command line says."""
    _end_with_parent()
    _share_cores()
    from clip4vla.training.loop import train

    try:
        train(Job.read(Path(sys.argv[1])))
    except ValueError as error:
        sys.exit(f"rank {os.environ.get('RANK', '0')}: {error}")


if __name__ == "__main__":
    main()
