"""Scores by kind of query, for the tests of whatever shows or compares them."""

from collections.abc import Mapping

import numpy as np

from clip4vla.evaluation.retrieval_metrics import QueryRanks
from clip4vla.evaluation.scores import QueryTable, Scores, summarise
from clip4vla.records import MODALITIES

QUERIES = 20
"""Queries of each kind, and of each direction."""
WEIGHTS = {"video": 0.25, "verbal": 0.125, "nonverbal": 0.625}


def table(answered: int) -> QueryTable:
    """Of `QUERIES` queries of as many clips so many find their clip first."""
    rank = np.array([1.0] * answered + [7.0] * (QUERIES - answered))
    hits = np.stack([rank <= k for k in (1, 5, 10)], axis=1).astype(float)
    ids = tuple(f"query{index}" for index in range(QUERIES))
    return QueryTable(ids, ids, QueryRanks(rank, hits))


def scores_by_kind(
    kinds: Mapping[str, tuple[int, int, int]],
    held_out: Mapping[str, tuple[int, int, int]] = {},
    weights: Mapping[str, float] = {},
    all_captions: tuple[int, int, int] = (2, 4, 18),
    unseen: Mapping[str, Mapping[str, tuple[int, int]]] = {},
) -> Scores:
    """Scores whose captions and queries are answered so often by video, by audio and by both.

    Args:
        kinds: queries answered, by kind.
        held_out: the same in held-out phrasings.
        weights: mean weights by expert, the same for every kind.
        all_captions: captions answered.
        unseen: queries answered by both, on the original and on the unseen clips, by corpus and kind.
    """
    groups = {f"by_query/{kind}": answered for kind, answered in kinds.items()}
    groups |= {f"held_out/{kind}": answered for kind, answered in held_out.items()}
    others = {f"{group}/weight/{name}": weight for group in groups for name, weight in weights.items()}
    groups |= dict.fromkeys(("text_to_clip", "clip_to_text"), all_captions)
    tables = {
        f"{group}/{modality}": table(count)
        for group, answered in groups.items()
        for modality, count in zip(MODALITIES, answered, strict=True)
    }
    for corpus, found in unseen.items():
        for kind, counts in found.items():
            for group, count in zip(("original", "unseen"), counts, strict=True):
                tables[f"{group}/{corpus}/{kind}/both"] = table(count)
    return summarise("abc", tables, 100, 0, others)
