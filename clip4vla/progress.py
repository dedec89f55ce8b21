"""What a person watching sees: a bar with rate and ETA on a terminal, plain lines in a log file."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Item = TypeVar("Item")

LOG_EVERY_S = 10.0


def track(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    """Yield `items`, showing how many of `total` are done, their rate and the time that is left.

    Args:
        items: anything iterable, consumed once.
        total: how many there will be.
        what: the unit in the plural, "clips".
    """
    return _bar(items, total, what) if sys.stderr.isatty() else _lines(items, total, what)


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
            progress.update(task, completed=done, rate=_shown(done / (time.monotonic() - start)))


def _lines(items: Iterable[Item], total: int, what: str) -> Iterator[Item]:
    start = last = time.monotonic()
    done = 0
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= LOG_EVERY_S:
            rate = done / (now - start)
            print(f"{done:,}/{total:,} {what}  {_shown(rate)}/s  {(total - done) / rate:,.0f} s left", file=sys.stderr)
            last = now
    print(f"{done:,}/{total:,} {what}  in {time.monotonic() - start:,.1f} s", file=sys.stderr, flush=True)


def _shown(rate: float) -> str:
    """Whole numbers, but for slow work, where 0/s would say nothing."""
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
