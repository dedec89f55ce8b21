"""Retrieval metrics: tie-averaged ranks, re-ranking, and recalls and medians as the published programs state them."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.parity.deviation import EXACT, Deviation, Tolerance, deviation
from benchmarks.parity.reference import Arrays
from clip4vla.evaluation.rerank import nearest, rerank
from clip4vla.evaluation.retrieval_metrics import CUTOFFS, QueryRanks, ranks, retrieval_scores

GROUPS = ("metrics",)
ROUNDING = Tolerance(1e-12)


def check(arrays: Arrays, facts: Mapping[str, Any]) -> Iterator[Deviation]:
    """Every similarity matrix with ranks, by all of its queries and, where there is a mask, by those that it keeps.

    Queries stand in equal consecutive blocks per item.

    Raises:
        ValueError: the queries can't be cut into such blocks.
    """
    yield from _reranked(arrays)
    for key in arrays:
        if key.endswith("/ranks0"):
            name = key.removesuffix("/ranks0")
            found = _ranked(name, arrays[name], torch.ones(len(arrays[name]), dtype=torch.bool))
            yield deviation("metrics", key, torch.from_numpy(found.rank) - 1, arrays[key], EXACT)
            yield from _scores(name, found, facts)
        elif match := re.fullmatch(r"(.+)_(query_mask)", key):
            found = _ranked(match[1], arrays[match[1]], arrays[key].flatten() == 1)
            yield from _scores(f"{match[1]}|{match[2]}", found, facts)


def _reranked(arrays: Arrays) -> Iterator[Deviation]:
    """The best re-ordered by another score: K + 1 of them, as published."""
    for key in arrays:
        if match := re.fullmatch(r"(.*)rerank/out_K(\d+)", key):
            original, other = (arrays[f"{match[1]}rerank/{name}"].numpy() for name in ("original", "adjust"))
            items = nearest(original, int(match[2]) + 1)
            ours = rerank(original, items, np.take_along_axis(other, items, axis=1))
            yield deviation("metrics", key, torch.from_numpy(ours), arrays[key], EXACT)


def _ranked(name: str, similarity: Tensor, kept: Tensor) -> QueryRanks:
    n_queries, n_items = similarity.shape
    if n_queries % n_items:
        raise ValueError(f"metrics.npz: the {n_queries} queries of {name} are no equal blocks for {n_items} items")
    items = torch.arange(n_items).repeat_interleave(n_queries // n_items)[kept]
    return ranks(similarity[kept].numpy(), torch.stack([torch.arange(len(items)), items], dim=1).numpy())


def _scores(name: str, found: QueryRanks, facts: Mapping[str, Any]) -> Iterator[Deviation]:
    """Recalls in 0..1 and the median rank.

    A tie across the k-th place, of which we count a part, is published as a hit if its mean place is within, and at
    the top as a miss.
    """
    stated = facts.get(name, {}).get("t2v_metrics", {})
    decided, cutoffs = (found.hits == 0) | (found.hits == 1), np.array(CUTOFFS)
    published_rule = (found.rank[:, None] - 1 < cutoffs) & (cutoffs > 1)
    recalls = np.where(decided, found.hits, published_rule).mean(axis=0)
    ours = {f"R{k}": recall for k, recall in zip(CUTOFFS, recalls, strict=True)}
    ours["MR"] = retrieval_scores(found)["MdR"]
    for key, value in ours.items():
        if key in stated:
            numbers = [torch.tensor(number, dtype=torch.float64) for number in (value, stated[key])]
            yield deviation("metrics", f"{name} {key}", numbers[0], numbers[1], ROUNDING)
