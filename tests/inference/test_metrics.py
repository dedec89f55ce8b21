"""What is counted of requests, and where it can be read."""

import math
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest

from clip4vla.inference.drift import EmbeddingStatistics
from clip4vla.inference.metrics import LEAST, WINDOW, ServingMetrics
from tests.servers import free_port

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(500, 8)).astype(np.float32)
REFERENCE = {"text": EmbeddingStatistics.of(VECTORS), "media": EmbeddingStatistics.of(VECTORS + 3)}


def value(metrics: ServingMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_requests_are_answered_refused_or_failed_and_timed() -> None:
    metrics = ServingMetrics(None)
    for error in (None, None, LookupError(), ValueError("a defect")):
        with nullcontext() if error is None else pytest.raises(type(error)), metrics.request(refusal=LookupError):
            if error is not None:
                raise error
    outcomes = ("answered", "refused", "failed")
    counts = {outcome: value(metrics, "clip4vla_requests_total", outcome=outcome) for outcome in outcomes}
    assert counts == {"answered": 2, "refused": 1, "failed": 1}
    assert value(metrics, "clip4vla_request_seconds_count") == 4
    assert value(metrics, "clip4vla_drift", kind="text") is None, "there is no reference"


def test_rows_are_counted_by_kind_and_rejects_by_reason_from_many_threads() -> None:
    metrics = ServingMetrics(None)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: (metrics.answered("text", ["a", "b"]), metrics.rejected("corrupt")), range(100)))
    assert value(metrics, "clip4vla_rows_total", kind="text") == 200
    assert value(metrics, "clip4vla_rejects_total", reason="corrupt") == 100


def test_the_drift_is_that_of_the_last_rows_of_a_kind() -> None:
    metrics = ServingMetrics(REFERENCE)
    metrics.answered("text", VECTORS[: LEAST - 1].tolist())
    assert math.isnan(value(metrics, "clip4vla_drift", kind="text") or 0.0), "too few to tell"
    metrics.answered("text", VECTORS.tolist())
    assert value(metrics, "clip4vla_drift", kind="text") == pytest.approx(0, abs=0.1)
    metrics.answered("text", (VECTORS + 1).tolist() * (WINDOW // len(VECTORS)))
    assert value(metrics, "clip4vla_drift", kind="text") == pytest.approx(1, abs=0.1)
    metrics.answered("media", VECTORS.tolist())
    assert value(metrics, "clip4vla_drift", kind="media") == pytest.approx(3, abs=0.2)


def test_metrics_are_served_on_loopback_and_a_port_that_is_taken_is_named() -> None:
    metrics, port = ServingMetrics(REFERENCE), free_port()
    metrics.rejected("too_long")
    metrics.expose(port)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        assert 'clip4vla_rejects_total{reason="too_long"} 1.0' in answer.read().decode()
    with pytest.raises(ValueError, match=rf"^CLIP4VLA_METRICS_PORT: port {port} is taken .*needs one of its own"):
        ServingMetrics(None).expose(port)
