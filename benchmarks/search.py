"""`python -m benchmarks.search`: how long the nearest clips take to find, by an exact scan and by the vector index.

Synthetic embeddings: clips around centres, as clips of one kind are, and queries near clips. The index's recall is
the share of the exact ten nearest that it finds too. Nothing is embedded here; `clip4vla search` prints its time with
the embedding.
"""

import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from benchmarks.measure import report, silence
from clip4vla.inference.index import index_vectors, nearest, schema
from clip4vla.records import MODALITIES

SPREAD = 0.7
"""Length of the noise about a centre."""
PICTURE, SOUND = 5_000, 16_000
"""Bytes of each clip's preview."""
ROWS_AT_ONCE = 10_000


def draw(count: int, width: int, centres: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Unit vectors (count, width) about `centres` (K, width)."""
    noise = rng.standard_normal((count, width), np.float32) * np.float32(SPREAD / width**0.5)
    vectors = centres[rng.integers(len(centres), size=count)] + noise
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write_clips(path: Path, count: int, width: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Write `count` clips with synthetic vectors; those of `both` (count, width)."""
    centres = draw(max(1, count // 100), width, np.zeros((1, width), np.float32), rng)
    parts = []
    for start in range(0, count, ROWS_AT_ONCE):
        size = min(ROWS_AT_ONCE, count - start)
        vectors = {modality: draw(size, width, centres, rng) for modality in MODALITIES}
        columns = {
            "path": [f"clip{start + index}.mp4" for index in range(size)],
            "bytes": [0] * size,
            "modified_ns": [0] * size,
            "start_s": [0.0] * size,
            "end_s": [3.0] * size,
            "pictures": [[bytes(PICTURE)]] * size,
            "sound": [bytes(SOUND)] * size,
        } | {name: list(values) for name, values in vectors.items()}
        lance.write_dataset(pa.table(columns, schema(width)), str(path), mode="append" if start else "create")
        parts.append(vectors["both"])
    return np.concatenate(parts)


def measure(dataset: Any, queries: NDArray[np.float32], top: int) -> tuple[dict[str, float], list[set[str]]]:
    """Milliseconds a query, and the paths that each one found."""
    nearest(dataset, queries[0], top, "both")
    times, found = [], []
    for query in queries:
        start = time.perf_counter()
        hits = nearest(dataset, query, top, "both")
        times.append(1000 * (time.perf_counter() - start))
        found.append({hit.path for hit in hits})
    return {"median_ms": median(times), "p95_ms": float(np.percentile(times, 95))}, found


def main(arguments: Sequence[str] | None = None) -> None:
    """Write, search, index, search again, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=512, help="of the embeddings")
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--top", type=int, default=10)
    settings = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as directory, silence():
        path = Path(directory) / "clips.lance"
        vectors = write_clips(path, settings.clips, settings.width, rng)
        queries = draw(settings.queries, settings.width, vectors, rng)
        exact = [set(np.argsort(-(vectors @ query))[: settings.top].tolist()) for query in queries]
        expected = [{f"clip{row}.mp4" for row in rows} for rows in exact]
        dataset = lance.dataset(str(path))
        scan, scanned = measure(dataset, queries, settings.top)
        start = time.perf_counter()
        index_vectors(dataset)
        results: dict[str, Any] = {"build_s": time.perf_counter() - start, "scan": scan}
        results["index"], found = measure(lance.dataset(str(path)), queries, settings.top)
    shares = [len(a & b) / len(b) for a, b in zip(found, expected, strict=True)]
    results |= {"recall": float(np.mean(shares)), "scan_is_exact": scanned == expected}
    report("search", torch.device("cpu"), settings, results, packages=("pylance",))


if __name__ == "__main__":
    main()
