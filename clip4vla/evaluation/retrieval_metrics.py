"""Retrieval metrics: similarities and a correspondence in; ranks, scores and their intervals out.

Nothing here depends on models, modalities or files. Q queries are ranked against G gallery items; a query may
have several positives (a clip and its captions), of which the best one counts. What is kept is kept per query,
because two models are compared query by query, and clips, not captions, are what a test set is a sample of.

Ties are ranked by expectation: items of equal similarity stand in random order, and both a rank and a hit
within the first k are the mean over those orders. A model that gives every item the same similarity thus
scores like chance, where counting the tie as a miss (the published code's `rank < k`) gives it 0 at R@1 and
100 at R@k for large k, and counting each tied position as its own query gives a tied query more weight than
others. Without ties all three agree.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Interval = tuple[float, float]

CUTOFFS: tuple[int, ...] = (1, 5, 10)
"""The k of R@k."""

CONFIDENCE = 95.0
"""Per cent of the resamples between the ends of an interval."""

_BLOCK = 4_000_000
"""Numbers held at once while comparing or resampling (32 MB)."""


@dataclass(frozen=True)
class QueryRanks:
    """What became of each query.

    `rank` (Q,) float64 is the expected 1-based rank of the best positive, `hits` (Q, 3) float64 the chance in
    0..1 that it is among the first 1, 5 and 10 (`CUTOFFS`); without ties ranks are integers and hits are 0 or 1.
    """

    rank: FloatArray
    hits: FloatArray

    def __post_init__(self) -> None:
        if self.rank.ndim != 1 or self.hits.shape != (len(self.rank), len(CUTOFFS)):
            raise ValueError(f"ranks of shape {self.rank.shape} don't go with hits of shape {self.hits.shape}")
        if len(self.rank) == 0:
            raise ValueError("there are no queries to rank")
        if not (np.isfinite(self.rank) & (self.rank >= 1)).all():
            raise ValueError("a rank is not a finite number from 1 up")
        if not ((self.hits >= 0) & (self.hits <= 1)).all():
            raise ValueError("a hit is not in 0..1")

    def __len__(self) -> int:
        return len(self.rank)


Statistic = Callable[[FloatArray, FloatArray], FloatArray]
"""One number per resample, of per-query values (Q,) each counted as often as its weight (N, Q)."""


def weighted_mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Means (N,) of `values` (Q,) under each row of `weights` (N, Q)."""
    return np.asarray(weights @ values / weights.sum(axis=1))


def weighted_median(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Medians (N,) of `values` (Q,), each counted as often as its integer weight in `weights` (N, Q).

    The mean of the two middle values where their number is even, like `numpy.median`.
    """
    order = np.argsort(values, kind="stable")
    filled = np.cumsum(weights[:, order], axis=1)
    total = filled[:, -1:]
    lower = (filled <= (total - 1) // 2).sum(axis=1)
    upper = (filled <= total // 2).sum(axis=1)
    return np.asarray((values[order][lower] + values[order][upper]) / 2)


@dataclass(frozen=True)
class Metric:
    """How a score comes from the queries: `values` picks the per-query numbers, `statistic` sums them up."""

    values: Callable[[QueryRanks], FloatArray]
    statistic: Statistic
    lower_is_better: bool


def _recall(column: int) -> Metric:
    return Metric(lambda ranks: 100.0 * ranks.hits[:, column], weighted_mean, lower_is_better=False)


METRICS: Mapping[str, Metric] = {
    **{f"R@{k}": _recall(column) for column, k in enumerate(CUTOFFS)},
    "MdR": Metric(lambda ranks: ranks.rank, weighted_median, lower_is_better=True),
    "MnR": Metric(lambda ranks: ranks.rank, weighted_mean, lower_is_better=True),
}
"""R@k in per cent (0..100) of the queries; median and mean rank from 1 up."""


def correspondence(query_clips: Sequence[str], gallery_clips: Sequence[str]) -> IntArray:
    """Pairs (N, 2) of (query, gallery item) that belong to the same clip.

    Text -> clip: the clip of each caption, and the clips. Clip -> text: the clips, and the clip of each caption.
    """
    items: dict[str, list[int]] = {}
    for item, clip in enumerate(gallery_clips):
        items.setdefault(clip, []).append(item)
    pairs = [(query, item) for query, clip in enumerate(query_clips) for item in items.get(clip, ())]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def caption_correspondence(
    captions: Sequence[str], caption_clips: Sequence[str], gallery_clips: Sequence[str]
) -> IntArray:
    """Pairs (N, 2) of (caption, clip) where the clip has the identical caption, its own or another clip's."""
    texts: dict[str, set[str]] = {}
    for caption, clip in zip(captions, caption_clips, strict=True):
        texts.setdefault(caption, set()).add(clip)
    place = {clip: item for item, clip in enumerate(gallery_clips)}
    pairs = [(query, place[clip]) for query, caption in enumerate(captions) for clip in sorted(texts[caption])]
    return np.array(pairs, dtype=np.int64).reshape(-1, 2)


def ranks(similarity: ArrayLike, positives: ArrayLike) -> QueryRanks:
    """Rank the best positive of each query.

    Args:
        similarity: (Q, G), any real type; higher is nearer.
        positives: (N, 2) int pairs (query, gallery item), in any order, as `correspondence` makes them.

    Raises:
        ValueError: a similarity is not finite, a pair lies outside the matrix or is given twice, or a query has
            no positive.
    """
    matrix = np.asarray(similarity)
    pairs = np.asarray(positives)
    _check_pairs(matrix, pairs)
    _check_finite(matrix)
    queries, items = pairs[:, 0], pairs[:, 1]
    best = np.full(len(matrix), matrix.min(), dtype=matrix.dtype)
    np.maximum.at(best, queries, matrix[queries, items])
    greater, equal = _compare(matrix, best)
    tied_positives = np.bincount(queries[matrix[queries, items] == best[queries]], minlength=len(matrix))
    tied_negatives = equal - tied_positives
    rank = greater + 1 + tied_negatives / (tied_positives + 1)
    hits = [_hit(k - greater, tied_positives, tied_negatives) for k in CUTOFFS]
    return QueryRanks(rank, np.stack(hits, axis=1))


def _check_pairs(matrix: NDArray[Any], pairs: NDArray[Any]) -> None:
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"similarity has shape {matrix.shape}, not (queries, gallery items)")
    if pairs.ndim != 2 or pairs.shape[1] != 2 or not np.issubdtype(pairs.dtype, np.integer):
        raise ValueError(f"positives are {pairs.dtype} of shape {pairs.shape}, not integer pairs (N, 2)")
    if (pairs < 0).any() or (pairs >= matrix.shape).any():
        raise ValueError(f"a pair of positives lies outside the similarity of shape {matrix.shape}")
    if len(np.unique(pairs, axis=0)) != len(pairs):
        raise ValueError("a pair of positives is given twice")
    lonely = np.flatnonzero(np.bincount(pairs[:, 0], minlength=len(matrix)) == 0)
    if lonely.size:
        raise ValueError(f"query {lonely[0]} (and {lonely.size - 1} others) has no positive in the gallery")


def _row_blocks(matrix: NDArray[Any]) -> Iterator[slice]:
    step = max(1, _BLOCK // matrix.shape[1])
    return (slice(start, start + step) for start in range(0, len(matrix), step))


def _check_finite(matrix: NDArray[Any]) -> None:
    for rows in _row_blocks(matrix):
        wrong = ~np.isfinite(matrix[rows])
        if wrong.any():
            query, item = np.argwhere(wrong)[0]
            value = matrix[rows][query, item]
            raise ValueError(f"the similarity of query {rows.start + query} and item {item} is {value}")


def _compare(matrix: NDArray[Any], best: NDArray[Any]) -> tuple[IntArray, IntArray]:
    """How many items (Q,) of each row are greater than, and equal to, its best positive."""
    greater = np.empty(len(matrix), dtype=np.int64)
    equal = np.empty(len(matrix), dtype=np.int64)
    for rows in _row_blocks(matrix):
        greater[rows] = np.count_nonzero(matrix[rows] > best[rows, None], axis=1)
        equal[rows] = np.count_nonzero(matrix[rows] == best[rows, None], axis=1)
    return greater, equal


def _hit(places: IntArray, positives: IntArray, negatives: IntArray) -> FloatArray:
    """Chance (Q,) that one of p positives is among the first `places` of p + n items in random order.

    One minus the chance that only negatives are drawn: n/(p+n) * (n-1)/(p+n-1) * ...
    """
    miss = np.ones(len(places))
    for drawn in range(max(CUTOFFS)):
        left = np.maximum(positives + negatives - drawn, 1)
        miss *= np.where(drawn < places, np.maximum(negatives - drawn, 0) / left, 1.0)
    return 1.0 - miss


def retrieval_scores(ranks: QueryRanks) -> dict[str, float]:
    """`R@1`, `R@5`, `R@10` in per cent, `MdR` and `MnR` from 1 up, over all queries."""
    once = np.ones((1, len(ranks)))
    return {name: float(metric.statistic(metric.values(ranks), once)[0]) for name, metric in METRICS.items()}


def retrieval_intervals(ranks: QueryRanks, groups: Sequence[str], resamples: int, seed: int) -> dict[str, Interval]:
    """95 % bootstrap intervals `(low, high)` of `retrieval_scores`, in the same units.

    Args:
        groups: (Q,) clip of each query. Clips are drawn, and bring all their queries: captions of one clip
            succeed or fail together, and drawing them apart would make the interval too narrow.
        resamples: how many draws of as many clips as there are.
        seed: the same seed gives the same interval.
    """
    values = {name: metric.values(ranks) for name, metric in METRICS.items()}
    replicates: dict[str, list[FloatArray]] = {name: [] for name in METRICS}
    for weights in _resample(groups, len(ranks), resamples, seed):
        for name, metric in METRICS.items():
            replicates[name].append(metric.statistic(values[name], weights))
    return {name: _percentiles(np.concatenate(parts)) for name, parts in replicates.items()}


def mean_interval(values: FloatArray, groups: Sequence[str], resamples: int, seed: int) -> Interval:
    """95 % bootstrap interval of the mean of `values` (Q,), drawing the groups (Q,) with replacement."""
    return bootstrap_interval(lambda weights: weighted_mean(values, weights), groups, resamples, seed)


def bootstrap_interval(
    statistic: Callable[[FloatArray], FloatArray], groups: Sequence[str], resamples: int, seed: int
) -> Interval:
    """95 % bootstrap interval of a statistic of Q values, drawing their groups (Q,) with replacement.

    Args:
        statistic: (n,) of n draws, from how often each value counts in them (n, Q).
    """
    draws = _resample(groups, len(groups), resamples, seed)
    return _percentiles(np.concatenate([statistic(weights) for weights in draws]))


def paired_difference(
    candidate_per_query: ArrayLike,
    champion_per_query: ArrayLike,
    groups: Sequence[str],
    resamples: int,
    seed: int,
    statistic: Statistic = weighted_mean,
) -> tuple[float, float, float]:
    """Candidate minus champion on the same queries: `(difference, low, high)` with a 95 % bootstrap interval.

    Both are measured on the same draws of clips, so that what makes a query hard for both cancels out.

    Args:
        candidate_per_query: (Q,) a number per query, such as a hit or a rank.
        champion_per_query: (Q,) the champion's, in the same order.
        groups: (Q,) clip of each query.
        statistic: what is compared; the difference is that of the two statistics.

    Raises:
        ValueError: the lengths differ, or a value is not finite.
    """
    candidate = np.asarray(candidate_per_query, dtype=np.float64)
    champion = np.asarray(champion_per_query, dtype=np.float64)
    if candidate.ndim != 1 or candidate.shape != champion.shape:
        raise ValueError(f"candidate {candidate.shape} and champion {champion.shape} are not the same queries")
    if not (np.isfinite(candidate).all() and np.isfinite(champion).all()):
        raise ValueError("a value to compare is not finite")
    compare = _difference(candidate, champion, statistic)
    replicates = [compare(weights) for weights in _resample(groups, len(candidate), resamples, seed)]
    difference = compare(np.ones((1, len(candidate))))[0]
    return float(difference), *_percentiles(np.concatenate(replicates))


def _difference(
    candidate: FloatArray, champion: FloatArray, statistic: Statistic
) -> Callable[[FloatArray], FloatArray]:
    """The comparison as a function of weights. Means are subtracted per query: equal models give exactly 0."""
    if statistic is weighted_mean:
        return lambda weights: weighted_mean(candidate - champion, weights)
    return lambda weights: statistic(candidate, weights) - statistic(champion, weights)


def _resample(groups: Sequence[str], queries: int, resamples: int, seed: int) -> Iterator[FloatArray]:
    """Draw clips with replacement: blocks (n, Q) of how often each query counts, `resamples` rows in all."""
    if len(groups) != queries:
        raise ValueError(f"{len(groups)} groups don't go with {queries} queries")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}, at least 1 is needed")
    names, group_of_query = np.unique(np.asarray(groups), return_inverse=True)
    generator = np.random.default_rng(seed)
    step = max(1, _BLOCK // queries)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(len(names), size=(rows, len(names)))
        drawn += np.arange(rows)[:, None] * len(names)
        counts = np.bincount(drawn.ravel(), minlength=rows * len(names)).reshape(rows, len(names))
        yield counts[:, group_of_query].astype(np.float64)


def _percentiles(replicates: FloatArray) -> Interval:
    tail = (100.0 - CONFIDENCE) / 2
    low, high = np.percentile(replicates, (tail, 100.0 - tail))
    return float(low), float(high)
