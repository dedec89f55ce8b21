"""Threads of a process: how those that compute one operation together wait for each other.

Import this before torch, whose OpenMP reads its settings once, when it is loaded.
"""

import os

SPIN_COUNT = "10000"
"""Rounds that a thread waits busily before it lets another process have its core."""


def spin_briefly() -> None:
    """Let threads that wait give up their core soon, unless the environment says how long they wait.

    GNU OpenMP waits busily for milliseconds. Where another process wants the core, the thread that is waited for is
    the one that can't run: two threads beside a busy process are several times slower than one.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
