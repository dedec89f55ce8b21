"""What a served model sees, as Prometheus metrics: requests, latency, rows, rejects by reason, drift.

In: what happened to each request. Out: `http://127.0.0.1:PORT/metrics`, where CLIP4VLA_METRICS_PORT is set. The numbers
are those of one process since it started.
"""

import math
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from clip4vla.inference.drift import EmbeddingStatistics, Kind, Reference

WINDOW = 1000
"""Rows of each kind, the last ones, whose drift is shown."""
LEAST = 30
"""Rows before there is a drift; fewer say too little."""
SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0)


class ServingMetrics:
    """Counts what happens to requests, from any number of threads.

    Args:
        reference: statistics of the test set's embeddings; None: there is no drift to show.
    """

    def __init__(self, reference: Reference | None) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "clip4vla_requests", "Requests that were answered, refused or failed", ["outcome"], registry=self.registry
        )
        self._seconds = Histogram(
            "clip4vla_request_seconds", "Seconds from a request to its answer", buckets=SECONDS, registry=self.registry
        )
        self._rows = Counter("clip4vla_rows", "Rows that were answered", ["kind"], registry=self.registry)
        self._rejects = Counter("clip4vla_rejects", "Rows that got an error", ["reason"], registry=self.registry)
        self._lock = threading.Lock()
        self._seen: dict[Kind, deque[Sequence[float]]] = {kind: deque(maxlen=WINDOW) for kind in reference or {}}
        drift = Gauge(
            "clip4vla_drift",
            f"Distance of the mean embedding of the last {WINDOW} rows from the test set's, in units of its spread",
            ["kind"],
            registry=self.registry,
        )
        for kind, of_test_set in (reference or {}).items():
            drift.labels(kind).set_function(partial(self._drift, kind, of_test_set))

    def expose(self, port: int) -> None:
        """Serve the metrics on the loopback interface.

        Raises:
            ValueError: the port is taken.
        """
        try:
            start_http_server(port, "127.0.0.1", self.registry)
        except OSError as error:
            raise ValueError(
                f"CLIP4VLA_METRICS_PORT: port {port} is taken ({error.strerror}); a served model needs one of its own, "
                "and `mlflow models serve` one worker"
            ) from error

    @contextmanager
    def request(self, refusal: type[Exception]) -> Iterator[None]:
        """Count a request and its time; one that raises `refusal` is refused, one that raises anything else failed."""
        outcome = "failed"
        try:
            with self._seconds.time():
                yield
            outcome = "answered"
        except refusal:
            outcome = "refused"
            raise
        finally:
            self._requests.labels(outcome).inc()

    def answered(self, kind: Kind, answers: Sequence[Any]) -> None:
        """Count answered rows; the answers of a model with a reference are embeddings, which are kept for a while."""
        self._rows.labels(kind).inc(len(answers))
        if kind in self._seen:
            with self._lock:
                self._seen[kind].extend(answers)

    def rejected(self, reason: str) -> None:
        """Count a row that got an error."""
        self._rejects.labels(reason).inc()

    def _drift(self, kind: Kind, of_test_set: EmbeddingStatistics) -> float:
        with self._lock:
            seen = np.array(self._seen[kind], dtype=np.float32)
        return math.nan if len(seen) < LEAST else of_test_set.drift(EmbeddingStatistics.of(seen))
