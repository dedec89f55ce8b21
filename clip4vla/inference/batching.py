"""Calls of many threads, joined into batches: a server's requests of a row each pass through a model together."""

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Generic, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")


class Batcher(Generic[Item, Answer]):
    """Computes answers in a thread of its own, for all items that came in while it was busy with those before.

    An item waits for the batch before it, never for others to come.

    Args:
        compute: the answers to a batch, in order.
        size: most items of a batch.
    """

    def __init__(self, compute: Callable[[list[Item]], Sequence[Answer]], size: int) -> None:
        self._compute = compute
        self._size = size
        self._waiting: queue.SimpleQueue[tuple[Item, Future[Answer]]] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def __call__(self, items: Sequence[Item]) -> list[Answer]:
        """The answers to `items`, in order; raises what `compute` raised for a batch with one of them."""
        futures: list[Future[Answer]] = [Future() for _ in items]
        for pair in zip(items, futures, strict=True):
            self._waiting.put(pair)
        return [future.result() for future in futures]

    def _work(self) -> None:
        while True:
            batch = [self._waiting.get()]
            while len(batch) < self._size and not self._waiting.empty():
                batch.append(self._waiting.get())
            try:
                answers = self._compute([item for item, _ in batch])
                for (_, future), answer in zip(batch, answers, strict=True):
                    future.set_result(answer)
            except Exception as error:  # raised again in the threads that wait
                for _, future in batch:
                    if not future.done():
                        future.set_exception(error)
