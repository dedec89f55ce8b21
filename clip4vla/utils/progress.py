"""Progress of long work: a bar with rate and ETA on a terminal, plain lines in a log file.

In: an iterable, and its length where it is known. Out: the same items, while standard error shows how many are done.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from clip4vla.utils.numbers import format_rate

Item = TypeVar("Item")

LINE_EVERY_S = 20.0


def track(items: Iterable[Item], total: int | None, what: str) -> Iterator[Item]:
    """Yield `items`, showing how many of `total` are done, their rate and the time that is left.

    Args:
        items: anything iterable, consumed once.
        total: how many there will be; None if that isn't known: then a line every 20 seconds shows how many are done
            and their rate, and shorter work shows nothing.
        what: the unit in the plural, "clips".
    """
    return _lines(items, total, what) if total is None or not sys.stderr.isatty() else _bar(items, total, what)


def _bar(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}/s"),
        TimeRemainingColumn(),
    )
    start = time.monotonic()
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(what, total=total, rate="?")
        for done, item in enumerate(items, 1):
            yield item
            progress.update(task, completed=done, rate=format_rate(done / (time.monotonic() - start)))


def _lines(items: Iterable[Item], total: int | None, what: str) -> Iterator[Item]:
    start, done = time.monotonic(), 0

    def print_line() -> None:
        print(_line(done, total, what, time.monotonic() - start), file=sys.stderr, flush=True)

    with repeated(print_line, LINE_EVERY_S):
        for item in items:
            yield item
            done += 1
    if total is not None:
        print(f"{done:,}/{total:,} {what}  in {time.monotonic() - start:,.1f} s", file=sys.stderr, flush=True)


@contextmanager
def repeated(call: Callable[[], None], every_s: float) -> Iterator[None]:
    """Call every `every_s` seconds in a thread until the block ends: an item may take longer than that."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(every_s):
            call()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _line(done: int, total: int | None, what: str, seconds: float) -> str:
    """`2,560/5,500 clips  260/s  11 s left`; without rate as long as nothing is done, without time left of no total."""
    count = f"{done:,} {what}" if total is None else f"{done:,}/{total:,} {what}"
    if done == 0:
        return f"{count}  after {seconds:,.0f} s"
    rate = done / seconds
    left = "" if total is None else f"  {(total - done) / rate:,.0f} s left"
    return f"{count}  {format_rate(rate)}/s{left}"
