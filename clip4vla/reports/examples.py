"""Which examples a report shows: all cases ordered from best to worst in, a few of the best, median and worst out."""

from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")


def pick_examples(cases: Sequence[Case], keys: Sequence[str], count: int) -> dict[str, list[Case]]:
    """Up to `count` of the best, the median and the worst of `cases`, by heading.

    No key occurs twice. Of few keys each heading gets a third, and a heading without cases is left out.

    Args:
        cases: from best to worst.
        keys: of each case, such as the clip it is about.
    """
    count = min(count, max(1, len(set(keys)) // 3))
    last = len(cases) - 1
    best = _nearest(0, range(len(cases)), keys, count)
    worst = _nearest(last, _others(best, range(len(cases)), keys), keys, count)
    median = _nearest(last / 2, _others([*best, *worst], range(len(cases)), keys), keys, count)
    parts = {"Best": best, "Median": sorted(median), "Worst": worst}
    return {name: [cases[place] for place in places] for name, places in parts.items() if places}


def _nearest(to: float, places: Sequence[int], keys: Sequence[str], count: int) -> list[int]:
    """Up to `count` of `places`, the nearest to `to` first, no key twice."""
    first: dict[str, int] = {}
    for place in sorted(places, key=lambda place: abs(place - to)):
        first.setdefault(keys[place], place)
    return list(first.values())[:count]


def _others(taken: Sequence[int], places: Sequence[int], keys: Sequence[str]) -> list[int]:
    """Those of `places` whose keys no place of `taken` has."""
    known = {keys[place] for place in taken}
    return [place for place in places if keys[place] not in known]
