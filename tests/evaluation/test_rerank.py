"""Re-ranking reorders the nearest items by their second score, and nothing else."""

from pathlib import Path

import numpy as np
import pytest

from clip4vla.evaluation.rerank import nearest, rerank
from clip4vla.evaluation.retrieval_metrics import ranks

REFERENCE = Path(__file__).parents[1] / "data" / "reference" / "metrics.npz"
SIMILARITY = np.array([[0.9, 0.8, 0.7, 0.1], [0.1, 0.2, 0.3, 0.4]])


def test_the_nearest_are_ordered_by_their_second_score() -> None:
    items = nearest(SIMILARITY, 3)
    assert items.tolist() == [[0, 1, 2], [3, 2, 1]]
    second = rerank(SIMILARITY, items, np.array([[1.0, 3.0, 2.0], [0.0, 0.0, 9.0]]))
    np.testing.assert_array_equal(second, [[0.7, 0.9, 0.8, 0.1], [0.1, 0.4, 0.2, 0.3]])
    positives = np.array([[0, 1], [1, 0]])
    assert ranks(SIMILARITY, positives).rank.tolist() == [2, 4]
    assert ranks(second, positives).rank.tolist() == [1, 4]


def test_one_item_or_more_than_there_are_is_no_special_case() -> None:
    np.testing.assert_array_equal(rerank(SIMILARITY, nearest(SIMILARITY, 1), np.array([[1.0], [2.0]])), SIMILARITY)
    items = nearest(SIMILARITY, 99)
    assert items.shape == (2, 4)
    scores = np.take_along_axis(-SIMILARITY, items, axis=1)
    np.testing.assert_array_equal(np.argsort(rerank(SIMILARITY, items, scores)), np.argsort(-SIMILARITY))


@pytest.mark.parametrize("k", [3, 20])
def test_published_reranking(k: int) -> None:
    with np.load(REFERENCE) as stored:
        original, second, expected = (stored[f"rerank/{name}"] for name in ("original", "adjust", f"out_K{k}"))
    items = nearest(original, k + 1)  # the published K leaves out the first
    np.testing.assert_array_equal(rerank(original, items, np.take_along_axis(second, items, axis=1)), expected)
