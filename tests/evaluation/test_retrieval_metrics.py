"""Retrieval metrics against brute force, against the published code's numbers, and against themselves."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip4vla.evaluation.retrieval_metrics import (
    CUTOFFS,
    QueryRanks,
    caption_correspondence,
    correspondence,
    paired_difference,
    ranks,
    retrieval_intervals,
    retrieval_scores,
    weighted_median,
)

REFERENCE = Path(__file__).parent.parent / "data" / "reference"
ARRAYS = np.load(REFERENCE / "metrics.npz")
FACTS = json.loads((REFERENCE / "metrics.json").read_text())

MATRICES = ("square50", "square50_ties", "constant12", "multi5_60x12", "multi5_60x12_ties", "multi10_70x7")
UNTIED = ("square50", "multi5_60x12", "multi10_70x7")


def block_pairs(queries: int, items: int) -> np.ndarray:
    """Queries in equal consecutive blocks per item, as the published code asks."""
    return np.stack([np.arange(queries), np.arange(queries) // (queries // items)], axis=1)


def brute_force(similarity: np.ndarray, positives: list[set[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Ranks (Q,) and hits (Q, 3), averaged over every order in which ties can be broken."""
    orders = np.array(list(itertools.permutations(range(similarity.shape[1]))))
    best_rank, best_hits = [], []
    for row, own in zip(similarity, positives, strict=True):
        places = np.array([[np.lexsort((order, -row)).tolist().index(p) for p in own] for order in orders])
        first = places.min(axis=1) + 1
        best_rank.append(first.mean())
        best_hits.append([(first <= k).mean() for k in CUTOFFS])
    return np.array(best_rank), np.array(best_hits)


@st.composite
def problems(draw: st.DrawFn, max_items: int = 5) -> tuple[np.ndarray, list[set[int]]]:
    """Small matrices of few distinct values, so that ties are the rule, and one or more positives per query."""
    queries, items = draw(st.integers(1, 4)), draw(st.integers(1, max_items))
    values = draw(st.lists(st.integers(0, 2), min_size=queries * items, max_size=queries * items))
    positives = [draw(st.sets(st.integers(0, items - 1), min_size=1)) for _ in range(queries)]
    return np.array(values, dtype=np.float32).reshape(queries, items), positives


def as_pairs(positives: list[set[int]]) -> np.ndarray:
    return np.array([(query, item) for query, own in enumerate(positives) for item in sorted(own)])


@given(problems())
@settings(max_examples=60, deadline=None)
def test_equals_brute_force(problem: tuple[np.ndarray, list[set[int]]]) -> None:
    similarity, positives = problem
    found = ranks(similarity, as_pairs(positives))
    rank, hits = brute_force(similarity, positives)
    np.testing.assert_allclose(found.rank, rank, atol=1e-12)
    np.testing.assert_allclose(found.hits, hits, atol=1e-12)


@given(problems(max_items=12), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_the_gallery_does_not_matter(problem: tuple[np.ndarray, list[set[int]]], random) -> None:
    similarity, positives = problem
    order = list(range(similarity.shape[1]))
    random.shuffle(order)
    moved = [{order.index(item) for item in own} for own in positives]
    before, after = ranks(similarity, as_pairs(positives)), ranks(similarity[:, order], as_pairs(moved))
    np.testing.assert_array_equal(before.rank, after.rank)
    np.testing.assert_array_equal(before.hits, after.hits)


@given(problems(max_items=12), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_of_the_queries_does_not_matter(problem: tuple[np.ndarray, list[set[int]]], random) -> None:
    similarity, positives = problem
    order = list(range(len(similarity)))
    random.shuffle(order)
    before = ranks(similarity, as_pairs(positives))
    after = ranks(similarity[order], as_pairs([positives[query] for query in order]))
    np.testing.assert_array_equal(before.rank[order], after.rank)
    assert retrieval_scores(before) == pytest.approx(retrieval_scores(after))


@given(problems(max_items=12))
@settings(deadline=None)
def test_only_the_order_of_similarities_counts(problem: tuple[np.ndarray, list[set[int]]]) -> None:
    similarity, positives = problem
    pairs = as_pairs(positives)
    np.testing.assert_array_equal(ranks(similarity, pairs).rank, ranks(3 * similarity - 7, pairs).rank)


@pytest.mark.parametrize(("positives", "negatives"), [(1, 11), (2, 9), (3, 20), (5, 2)])
def test_hits_among_ties_are_the_chance_of_drawing_a_positive(positives: int, negatives: int) -> None:
    total = positives + negatives
    found = ranks(np.zeros((1, total)), [(0, item) for item in range(positives)])
    chances = [1 - math.comb(negatives, min(k, total)) / math.comb(total, min(k, total)) for k in CUTOFFS]
    np.testing.assert_allclose(found.hits[0], chances, atol=1e-12)
    assert found.rank[0] == pytest.approx((total + 1) / (positives + 1))


def test_a_tie_of_two_at_the_top_is_half_a_hit() -> None:
    found = ranks([[1.0, 1.0, 0.0]], [(0, 0)])
    assert found.rank[0] == 1.5
    assert found.hits[0].tolist() == [0.5, 1.0, 1.0]


def test_best_of_several_positives_counts() -> None:
    assert ranks([[0.1, 0.9, 0.5, 0.7]], [(0, 0), (0, 3)]).rank.tolist() == [2.0]


@pytest.mark.parametrize("name", MATRICES)
def test_ranks_are_the_published_tie_averaged_ones(name: str) -> None:
    found = ranks(ARRAYS[name], block_pairs(*ARRAYS[name].shape))
    np.testing.assert_array_equal(found.rank - 1, ARRAYS[f"{name}/ranks0"])
    assert retrieval_scores(found)["MdR"] == FACTS[name]["t2v_metrics"]["MR"]


@pytest.mark.parametrize("name", UNTIED)
def test_recalls_are_the_published_ones_without_ties(name: str) -> None:
    found = retrieval_scores(ranks(ARRAYS[name], block_pairs(*ARRAYS[name].shape)))
    for k in CUTOFFS:
        assert found[f"R@{k}"] == pytest.approx(100 * FACTS[name]["t2v_metrics"][f"R{k}"])


def test_recalls_are_the_published_ones_on_a_part_of_the_queries() -> None:
    kept = ARRAYS["multi5_60x12_query_mask"][:, 0] == 1
    pairs = np.stack([np.arange(kept.sum()), np.arange(60)[kept] // 5], axis=1)
    found = retrieval_scores(ranks(ARRAYS["multi5_60x12"][kept], pairs))
    published = FACTS["multi5_60x12|query_mask"]["t2v_metrics"]
    assert found["R@1"] == pytest.approx(100 * published["R1"])
    assert found["MdR"] == published["MR"]


def test_ties_are_neither_all_missed_nor_all_hit() -> None:
    """The published R@k on 12 equal similarities is 0, 0, 100 (a miss up to the middle); chance is k/12."""
    found = retrieval_scores(ranks(ARRAYS["constant12"], block_pairs(12, 12)))
    published = FACTS["constant12"]["t2v_metrics"]
    assert [published["R1"], published["R5"], published["R10"]] == [0.0, 0.0, 1.0]
    assert [found["R@1"], found["R@5"], found["R@10"]] == pytest.approx([100 / 12, 500 / 12, 1000 / 12])
    diagonal = FACTS["constant12"]["compute_metrics"]
    assert found["R@5"] == pytest.approx(100 * diagonal["R5"])


def test_captions_to_clips_and_back_follow_the_clip_ids() -> None:
    captions, clips = ["b", "a", "b"], ["a", "b", "c"]
    assert correspondence(captions, clips).tolist() == [[0, 1], [1, 0], [2, 1]]
    assert correspondence(clips[:2], captions).tolist() == [[0, 1], [1, 0], [1, 2]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_similarity_that_is_not_finite_is_named(bad: float) -> None:
    similarity = np.eye(3)
    similarity[1, 2] = bad
    with pytest.raises(ValueError, match=f"query 1 and item 2 is {bad}"):
        ranks(similarity, block_pairs(3, 3))


@pytest.mark.parametrize(
    ("similarity", "pairs", "message"),
    [
        (np.zeros(3), [(0, 0)], "shape"),
        (np.zeros((0, 3)), [(0, 0)], "shape"),
        (np.zeros((2, 2)), [(0, 0)], "query 1 .* no positive"),
        (np.zeros((1, 2)), [(0, 2)], "outside"),
        (np.zeros((1, 2)), [(0, -1)], "outside"),
        (np.zeros((1, 2)), [(0, 1), (0, 1)], "twice"),
        (np.zeros((1, 2)), [(0.0, 1.0)], "not integer pairs"),
        (np.zeros((1, 2)), [0, 1], "pairs"),
    ],
)
def test_wrong_input_is_refused(similarity: np.ndarray, pairs: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranks(similarity, pairs)


def test_large_galleries_are_compared_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    similarity = np.random.default_rng(0).integers(0, 50, size=(40, 300)).astype(np.float32)
    pairs = np.stack([np.arange(40), np.arange(40) * 7], axis=1)
    complete = ranks(similarity, pairs)
    monkeypatch.setattr("clip4vla.evaluation.retrieval_metrics._BLOCK", 900)
    blocks = ranks(similarity, pairs)
    np.testing.assert_array_equal(complete.rank, blocks.rank)
    np.testing.assert_array_equal(complete.hits, blocks.hits)


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=12).filter(
        lambda rows: sum(weight for _, weight in rows) > 0
    )
)
def test_weighted_median_is_the_median_of_the_repeated_values(rows: list[tuple[int, int]]) -> None:
    values = np.array([value for value, _ in rows], dtype=np.float64)
    weights = np.array([weight for _, weight in rows])
    found = weighted_median(values, weights[None].astype(np.float64))
    assert found[0] == np.median(np.repeat(values, weights))


def random_ranks(queries: int, seed: int = 0) -> QueryRanks:
    similarity = np.random.default_rng(seed).standard_normal((queries, queries)) + 2 * np.eye(queries)
    return ranks(similarity, block_pairs(queries, queries))


def names(groups: np.ndarray) -> list[str]:
    return [f"clip{group}" for group in groups]


def test_intervals_hold_the_scores_and_repeat_under_their_seed() -> None:
    found = random_ranks(200)
    groups = names(np.arange(200) // 4)
    scores, intervals = retrieval_scores(found), retrieval_intervals(found, groups, 500, seed=3)
    for name, (low, high) in intervals.items():
        assert low <= scores[name] <= high
        assert low < high
    assert intervals == retrieval_intervals(found, groups, 500, seed=3)
    assert intervals != retrieval_intervals(found, groups, 500, seed=4)


def test_interval_of_independent_hits_is_that_of_the_binomial() -> None:
    hits = np.repeat([[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], [300, 700], axis=0)
    found = QueryRanks(rank=np.where(hits[:, 0] == 1, 1.0, 20.0), hits=hits)
    low, high = retrieval_intervals(found, names(np.arange(1000)), 4000, seed=0)["R@1"]
    half_width = 1.96 * 100 * math.sqrt(0.3 * 0.7 / 1000)
    assert low == pytest.approx(30 - half_width, abs=0.3)
    assert high == pytest.approx(30 + half_width, abs=0.3)


def test_captions_of_a_clip_are_drawn_together() -> None:
    """Four captions that agree are one observation: the interval is twice as wide as of four clips."""
    hit = np.repeat(np.random.default_rng(1).integers(0, 2, 100), 4).astype(np.float64)
    found = QueryRanks(rank=20 - 19 * hit, hits=np.stack([hit] * 3, axis=1))
    together = retrieval_intervals(found, names(np.arange(400) // 4), 2000, seed=0)["R@1"]
    apart = retrieval_intervals(found, names(np.arange(400)), 2000, seed=0)["R@1"]
    assert (together[1] - together[0]) / (apart[1] - apart[0]) == pytest.approx(2, rel=0.15)


def test_blocks_of_resamples_are_all_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    found = random_ranks(50)
    complete = retrieval_intervals(found, names(np.arange(50)), 301, seed=0)
    monkeypatch.setattr("clip4vla.evaluation.retrieval_metrics._BLOCK", 50 * 37)
    assert retrieval_intervals(found, names(np.arange(50)), 301, seed=0) == complete


def test_a_model_against_itself_differs_by_nothing() -> None:
    hit = random_ranks(60).hits[:, 0]
    assert paired_difference(hit, hit, names(np.arange(60)), 200, seed=0) == (0.0, 0.0, 0.0)


def test_pairing_sees_what_two_intervals_hide() -> None:
    """Two models that differ on 4 % of the queries: paired, the gain is certain; apart, the intervals overlap."""
    champion = np.repeat([1.0, 0.0], 250)
    candidate = champion.copy()
    candidate[250:270] = 1.0
    difference, low, high = paired_difference(candidate, champion, names(np.arange(500)), 2000, seed=0)
    assert difference == pytest.approx(0.04)
    assert 0.02 < low < difference < high < 0.06


def test_medians_are_compared_as_medians() -> None:
    candidate, champion = np.array([1.0, 2.0, 30.0]), np.array([3.0, 4.0, 5.0])
    difference, low, high = paired_difference(
        candidate, champion, ["a", "b", "c"], 300, seed=0, statistic=weighted_median
    )
    assert difference == -2.0
    assert low <= difference <= high


@pytest.mark.parametrize(
    ("candidate", "champion", "groups", "resamples", "message"),
    [
        ([1.0, 0.0], [1.0], ["a", "b"], 10, "same queries"),
        ([1.0, np.nan], [1.0, 0.0], ["a", "b"], 10, "finite"),
        ([1.0, 0.0], [1.0, 0.0], ["a"], 10, "1 groups"),
        ([1.0, 0.0], [1.0, 0.0], ["a", "b"], 0, "resamples"),
    ],
)
def test_wrong_pairs_are_refused(candidate, champion, groups, resamples, message) -> None:
    with pytest.raises(ValueError, match=message):
        paired_difference(candidate, champion, groups, resamples, seed=0)


@pytest.mark.parametrize(
    ("rank", "hits", "message"),
    [
        ([], np.zeros((0, 3)), "no queries"),
        ([1.0], np.zeros((1, 2)), "shape"),
        ([0.5], np.zeros((1, 3)), "rank"),
        ([np.nan], np.zeros((1, 3)), "rank"),
        ([1.0], np.full((1, 3), 1.5), "hit"),
        ([1.0], np.full((1, 3), np.nan), "hit"),
    ],
)
def test_impossible_ranks_are_refused(rank: list[float], hits: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QueryRanks(np.array(rank), hits)


def test_a_caption_belongs_to_every_clip_that_has_it() -> None:
    captions = ["a bat", "a cow", "a bat", "a dog", "a bat"]
    owners = ["one", "one", "two", "three", "three"]
    found = caption_correspondence(captions, owners, ["two", "three", "one"])
    naive = [
        (query, item)
        for query, caption in enumerate(captions)
        for item, clip in enumerate(["two", "three", "one"])
        if any(other == caption and owner == clip for other, owner in zip(captions, owners, strict=True))
    ]
    assert sorted(map(tuple, found.tolist())) == naive
    assert len(ranks(np.eye(5, 3), found)) == 5


def test_a_caption_that_a_clip_has_twice_is_one_pair_and_different_captions_are_as_before() -> None:
    assert caption_correspondence(["a bat", "a bat"], ["one", "one"], ["one"]).tolist() == [[0, 0], [1, 0]]
    captions, owners, clips = ["a bat", "a cow", "a dog"], ["one", "one", "two"], ["one", "two"]
    np.testing.assert_array_equal(caption_correspondence(captions, owners, clips), correspondence(owners, clips))


def test_captions_and_their_clips_are_as_many() -> None:
    with pytest.raises(ValueError, match="shorter"):
        caption_correspondence(["a bat", "a cow"], ["one"], ["one"])
