"""Calls of many threads are computed together, and each gets its own answers."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from clip4vla.inference.batching import Batcher


def test_calls_that_come_in_together_are_computed_together_and_in_parts_that_are_small_enough() -> None:
    batches: list[list[int]] = []
    begun, go_on = threading.Event(), threading.Event()

    def double(items: list[int]) -> list[int]:
        batches.append(items)
        begun.set()
        go_on.wait(30)
        return [2 * item for item in items]

    batcher = Batcher(double, 3)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(batcher, [0])
        begun.wait(30)
        others = [pool.submit(batcher, [item, 10 * item]) for item in (1, 2)]
        while batcher._waiting.qsize() < 4:
            pass
        go_on.set()
        assert first.result(30) == [0]
        assert [other.result(30) for other in others] == [[2, 20], [4, 40]]
    assert [len(batch) for batch in batches] == [1, 3, 1]
    assert batcher([]) == []


def test_an_error_is_raised_where_the_answer_is_waited_for_and_later_calls_are_answered() -> None:
    batcher = Batcher(lambda items: [1 / item for item in items], 4)
    with pytest.raises(ZeroDivisionError):
        batcher([0])
    assert batcher([2]) == [0.5]
