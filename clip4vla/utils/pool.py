"""Worker processes that end when the process that started them has ended, however it ended.

Workers of the standard library's pool hold both ends of the pipe that they read from: they would wait for ever for a
parent that was killed with -9.
"""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from clip4vla.utils.supervise import exit_with_parent


def process_pool(
    workers: int, initializer: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """A pool of `workers` processes, each of which calls `initializer(*arguments)` first.

    They are spawned: threads, such as Lance's, don't survive a fork.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _start, (initializer, arguments))


def _start(initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    assert parent.pid is not None
    exit_with_parent(parent.pid)
    if initializer is not None:
        initializer(*arguments)
