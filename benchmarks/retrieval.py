"""`python -m benchmarks.retrieval`: time to score queries against a gallery, with the intervals of the scores.

Vectors in, scores with 95 % bootstrap intervals out: similarities on `--device`, ranks and resampling on the CPU, each
timed.
"""

from argparse import ArgumentParser
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import add_device, median_seconds, report
from clip4vla.evaluation.retrieval_metrics import ranks, retrieval_intervals, retrieval_scores

CPU = torch.device("cpu")


def unit_vectors(rng: np.random.Generator, number: int, width: int) -> NDArray[np.float32]:
    """(number, width) of length 1."""
    vectors = rng.standard_normal((number, width), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def measure(
    queries: int, gallery: int, width: int, resamples: int, repeats: int, device: torch.device
) -> dict[str, float]:
    """Seconds of each part; query q belongs to item q, or to one of them where the gallery is smaller."""
    rng = np.random.default_rng(0)
    texts, clips = unit_vectors(rng, queries, width), unit_vectors(rng, gallery, width)
    positives = np.stack([np.arange(queries), np.arange(queries) % gallery], axis=1)
    groups = [f"clip{item}" for item in positives[:, 1]]
    here = [torch.from_numpy(vectors).to(device) for vectors in (texts, clips)]
    similarity = (here[0] @ here[1].T).cpu().numpy()
    found = ranks(similarity, positives)
    parts = {
        "similarity_s": median_seconds(lambda: (here[0] @ here[1].T).cpu(), device, warmup=1, repeats=repeats),
        "ranks_s": median_seconds(lambda: ranks(similarity, positives), CPU, warmup=0, repeats=repeats),
        "scores_s": median_seconds(lambda: retrieval_scores(found), CPU, warmup=0, repeats=repeats),
        "bootstrap_s": median_seconds(
            lambda: retrieval_intervals(found, groups, resamples, seed=0), CPU, warmup=0, repeats=repeats
        ),
    }
    total = sum(parts.values())
    return {"queries": queries, "gallery": gallery, **parts, "total_s": total, "queries_per_s": queries / total}


def main(arguments: Sequence[str] | None = None) -> None:
    """Score at every gallery size, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.retrieval", description=__doc__)
    add_device(parser)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--galleries", type=int, nargs="+", default=[1000, 100_000])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=3)
    settings = parser.parse_args(arguments)
    rows = [
        measure(settings.queries, gallery, settings.width, settings.resamples, settings.repeats, settings.device)
        for gallery in settings.galleries
    ]
    report("retrieval", settings.device, settings, {"galleries": rows}, packages=("numpy",))


if __name__ == "__main__":
    main()
