"""Work on many items, by the processes of this machine or by a Dask cluster, in memory that does not grow with them.

In: a function, and items one after the other. Out: its results, in the order in which they are ready.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, wait
from typing import Any, TypeVar

from clip4vla.config import ClipsConfig
from clip4vla.utils.pool import process_pool

Item = TypeVar("Item")
Result = TypeVar("Result")

AHEAD = 4
"""Items that are handed out for each worker, the one it works on included."""
CLUSTER_ANSWERS_S = 20


def run_all(clips: ClipsConfig, work: Callable[[Item], Result], items: Iterable[Item], count: int) -> Iterator[Result]:
    """Yield what `work` makes of each of the `count` items: on a cluster, by processes or, where one is enough, here.

    Raises:
        ValueError: Dask isn't installed, or no cluster answers at `clips.dask`.
    """
    workers = min(clips.workers or os.cpu_count() or 1, count)
    if clips.dask:
        yield from _run_on_cluster(clips.dask, work, items)
    elif workers <= 1:
        yield from map(work, items)
    else:
        with process_pool(workers) as pool:
            yield from _run_some_at_once(
                lambda item: pool.submit(work, item),
                items,
                lambda: AHEAD * workers,
                lambda running: wait(running, return_when=FIRST_COMPLETED),
            )


def _run_on_cluster(address: str, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """The results of a Dask cluster, which tries an item again when the worker dies that had it."""
    try:
        from distributed import Client
        from distributed import wait as wait_for_cluster
    except ImportError as error:
        raise ValueError("clips.dask needs Dask: `pip install 'clip4vla[dask]'`") from error
    try:
        client = Client(address, timeout=CLUSTER_ANSWERS_S)
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask cluster answers at clips.dask {address!r}: {error}") from error
    with client:
        yield from _run_some_at_once(
            lambda item: client.submit(work, item, pure=False),
            items,
            lambda: AHEAD * max(1, sum(client.nthreads().values())),
            lambda running: wait_for_cluster(list(running), return_when="FIRST_COMPLETED"),
        )


def _run_some_at_once(
    submit: Callable[[Item], Any],
    items: Iterable[Item],
    most: Callable[[], int],
    wait_for_some: Callable[[set[Any]], tuple[Iterable[Any], Iterable[Any]]],
) -> Iterator[Any]:
    """The results of `items`, of which no more than `most()` are handed out at a time."""
    running: set[Any] = set()
    for item in items:
        running.add(submit(item))
        if len(running) >= most():
            finished, left = wait_for_some(running)
            running = set(left)
            yield from (future.result() for future in finished)
    while running:
        finished, left = wait_for_some(running)
        running = set(left)
        yield from (future.result() for future in finished)
