"""The flow `report-serving`: what a served model has seen, once a day, as a table among Prefect's artifacts.

In: the Prometheus metrics at CLIP4VLA_METRICS_URL, see `clip4vla.inference.metrics`. Out: the artifact `serving`.
"""

import os
import urllib.request
from collections.abc import Iterator
from typing import Any

from prefect import flow
from prefect.artifacts import create_table_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from clip4vla.utils.variables import METRICS_URL

TIMEOUT_S = 30.0
QUANTILES = (0.5, 0.95, 0.99)


@flow(name="report-serving", log_prints=True)
def report_serving() -> State[Any] | None:
    """Show what the served model has seen since it started; without CLIP4VLA_METRICS_URL there is nothing to do."""
    url = os.environ.get(METRICS_URL)
    if not url:
        return Completed(name="Skipped", message=f"{METRICS_URL} names no served model")
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        rows = serving_table(answer.read().decode())
    create_table_artifact(rows, key="serving", description=f"What the model served at {url} has seen")
    return None


def serving_table(metrics: str) -> list[dict[str, str]]:
    """A row for each number in Prometheus's text format: what it is, and how much."""
    families = {family.name: family for family in text_string_to_metric_families(metrics)}
    rows = [
        *_by_label(families, "clip4vla_requests", "requests {}"),
        *_latency(families),
        *_by_label(families, "clip4vla_rows", "answered rows of {}"),
        *_by_label(families, "clip4vla_rejects", "rejected rows: {}"),
        *_by_label(families, "clip4vla_drift", "drift of {}", ".2f"),
    ]
    return [{"what": what, "value": value} for what, value in rows]


def _by_label(families: dict[str, Metric], name: str, what: str, spec: str = ",.0f") -> Iterator[tuple[str, str]]:
    samples = families[name].samples if name in families else []
    for sample in samples:
        if not sample.name.endswith("_created"):
            [label] = sample.labels.values()
            yield what.format(label), format(sample.value, spec)


def _latency(families: dict[str, Metric]) -> Iterator[tuple[str, str]]:
    """Upper bounds of quantiles: the limits of the histogram's buckets that hold them."""
    samples = families["clip4vla_request_seconds"].samples
    buckets = [(sample.labels["le"], sample.value) for sample in samples if sample.name.endswith("_bucket")]
    total = buckets[-1][1]
    for quantile in QUANTILES if total else ():
        bound = next(bound for bound, count in buckets if count >= quantile * total)
        bound = f"more than {buckets[-2][0]}" if bound == "+Inf" else f"at most {bound}"
        yield f"seconds, {quantile:.0%} of requests", bound
