"""Re-ranking: a query's K nearest items in the order of a score that is too expensive for all of them.

In: similarities, and a second score of each query's K nearest items, such as that of
`model.cross_encoder.CrossEncoder`. Out: similarities in the resulting order, for `retrieval_metrics.ranks`.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def nearest(similarity: NDArray[Any], k: int) -> NDArray[np.int64]:
    """(Q, K) the K most similar items of each query (all, where there are fewer), from `similarity` (Q, G)."""
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


def rerank(similarity: NDArray[Any], items: NDArray[np.int64], scores: NDArray[Any]) -> NDArray[Any]:
    """`similarity` (Q, G) with the values of `items` reassigned, the highest to the item of the highest score.

    Args:
        items: (Q, K), as `nearest` gives them: so they stay before all others.
        scores: (Q, K) of the same items; of equal ones the more similar item stays first.
    """
    order = np.argsort(-scores, axis=1, kind="stable")
    values = np.take_along_axis(similarity, items, axis=1)
    result = similarity.copy()
    np.put_along_axis(result, np.take_along_axis(items, order, axis=1), values, axis=1)
    return result
