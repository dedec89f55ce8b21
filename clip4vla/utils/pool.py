"""Worker processes that end when the process that started them has ended, however it ended.

Workers of the standard library's pool hold both ends of the pipe that they read from, and torch's loader watches who
forked a worker, not who asked for it: both would wait for ever for a process that was killed with -9.
"""

import multiprocessing
import os
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def process_pool(
    workers: int, initializer: Callable[..., None] | None = None, arguments: tuple[Any, ...] = ()
) -> ProcessPoolExecutor:
    """A pool of `workers` processes, each of which calls `initializer(*arguments)` first.

    They are spawned: threads, such as Lance's, don't survive a fork.
    """
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(workers, context, _start, (initializer, arguments))


def end_with_parent() -> None:
    """Start a daemon thread that ends this process of `multiprocessing` when the one that asked for it has ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _start(initializer: Callable[..., None] | None, arguments: tuple[Any, ...]) -> None:
    end_with_parent()
    if initializer is not None:
        initializer(*arguments)
