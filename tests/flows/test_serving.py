"""The daily report of a served model, from metrics as the model counts them."""

import json

import numpy as np
import pytest
from prefect.artifacts import Artifact
from prometheus_client import generate_latest

from clip4vla.inference.drift import EmbeddingStatistics
from clip4vla.inference.metrics import ServingMetrics
from clip4vla.utils.variables import METRICS_URL
from flows.serving import report_serving, serving_table
from tests.servers import free_port


@pytest.mark.usefixtures("prefect")
def test_the_report_has_requests_latency_rejects_and_drift(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = np.random.default_rng(0).normal(size=(200, 8)).astype(np.float32)
    metrics, port = ServingMetrics({"text": EmbeddingStatistics.of(vectors)}), free_port()
    metrics.expose(port)
    for _ in range(3):
        with metrics.request(refusal=ValueError):
            metrics.answered("text", (vectors + 2).tolist())
    metrics.rejected("corrupt")
    with pytest.raises(ValueError, match="no"), metrics.request(refusal=ValueError):
        raise ValueError("no")
    monkeypatch.setenv(METRICS_URL, f"http://127.0.0.1:{port}/metrics")
    report_serving()
    artifact = Artifact.get("serving")
    assert artifact is not None
    assert isinstance(artifact.data, str)
    rows = {row["what"]: row["value"] for row in json.loads(artifact.data)}
    assert float(rows.pop("drift of text")) == pytest.approx(2, abs=0.1)
    assert rows == {
        "requests answered": "3",
        "requests refused": "1",
        "seconds, 50% of requests": "at most 0.01",
        "seconds, 95% of requests": "at most 0.01",
        "seconds, 99% of requests": "at most 0.01",
        "answered rows of text": "600",
        "rejected rows: corrupt": "1",
    }


@pytest.mark.usefixtures("prefect")
def test_without_a_served_model_the_run_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(METRICS_URL, raising=False)
    state = report_serving(return_state=True)
    assert (state.name, state.is_completed()) == ("Skipped", True)


def test_before_the_first_request_there_is_nothing_to_report() -> None:
    assert serving_table(generate_latest(ServingMetrics(None).registry).decode()) == []
