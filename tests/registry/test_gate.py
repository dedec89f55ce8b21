"""The gate: every rule on both of its sides, alone and together."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip4vla.config import GateConfig, GuardConfig
from clip4vla.evaluation.retrieval_metrics import QueryRanks
from clip4vla.evaluation.scores import QueryTable, Samples, Scores, summarise, summarise_samples
from clip4vla.records import Decision
from clip4vla.registry.gate import decide

PRIMARY = "text_to_clip/both/R@1"
CIDER = "caption/both/CIDEr"
PROBE = "probe/nonverbal/sound/R@1"


def scores(rank: Sequence[float], probe: float = 60.0, test_set: str = "abc", prefix: str = "query") -> Scores:
    """Scores whose queries have the integer ranks `rank`; two queries a clip."""
    ranks = np.asarray(rank, dtype=np.float64)
    hits = np.stack([ranks <= k for k in (1, 5, 10)], axis=1).astype(np.float64)
    names = tuple(f"{prefix}{index}" for index in range(len(ranks)))
    table = QueryTable(names, tuple(f"clip{index // 2}" for index in range(len(ranks))), QueryRanks(ranks, hits))
    return summarise(test_set, {"text_to_clip/both": table}, 100, 0, {PROBE: probe})


def ranks_with(hits: int, of: int = 200, miss: float = 20.0) -> list[float]:
    return [1.0] * hits + [miss] * (of - hits)


def gate(primary: str = PRIMARY, better: bool = False, floors=None, guards=(), min_clips: int = 1) -> GateConfig:
    return GateConfig(
        model_name="clip4vla",
        primary=primary,
        require_better=better,
        floors=floors or {},
        guards=tuple(GuardConfig(score=name, tolerance=tolerance) for name, tolerance in guards),
        min_clips=min_clips,
    )


def run_gate(candidate: Scores, champion: Scores | None, rules: GateConfig, seed: int = 0) -> Decision:
    return decide(candidate, champion, rules, resamples=500, seed=seed)


@pytest.mark.parametrize(("floor", "promote"), [(49.9, True), (50.0, True), (50.1, False)])
def test_without_a_champion_floors_alone_decide(floor: float, promote: bool) -> None:
    decision = run_gate(scores(ranks_with(100)), None, gate(better=True, floors={PRIMARY: floor}, guards=[(PROBE, 0)]))
    assert decision.promote is promote
    verdict = "pass" if promote else "FAIL"
    assert decision.reasons == (
        f"{verdict}: {PRIMARY} is 50, required: >= {floor:g}",
        "pass: there is no champion yet to compare with",
    )


def test_without_a_champion_and_without_floors_anything_passes() -> None:
    assert run_gate(scores(ranks_with(0)), None, gate()).promote


@pytest.mark.parametrize(("ceiling", "promote"), [(10.4, False), (10.5, True), (11.0, True)])
def test_floor_of_a_rank_is_its_greatest_value(ceiling: float, promote: bool) -> None:
    decision = run_gate(scores(ranks_with(100)), None, gate(floors={"text_to_clip/both/MdR": ceiling}))
    assert decision.promote is promote
    assert f"MdR is 10.5, required: <= {ceiling:g}" in decision.reasons[0]


@pytest.mark.parametrize(
    ("candidate_hits", "better", "promote"),
    [
        (100, False, True),
        (99, False, False),
        (101, False, True),
        (100, True, False),
        (101, True, False),
        (140, True, True),
        (60, True, False),
    ],
)
def test_primary_against_the_champion(candidate_hits: int, better: bool, promote: bool) -> None:
    """Equal passes unless better is required; one query more is no proof of being better."""
    champion = scores(ranks_with(100))
    decision = run_gate(scores(ranks_with(candidate_hits)), champion, gate(better=better))
    assert decision.promote is promote
    assert len(decision.reasons) == 1


@pytest.mark.parametrize("metric", ["MdR", "MnR"])
@pytest.mark.parametrize("better", [False, True])
def test_lower_ranks_are_better_as_primary(metric: str, better: bool) -> None:
    low, high = scores(ranks_with(100, miss=5.0) + [3.0] * 101), scores(ranks_with(100, miss=50.0) + [9.0] * 101)
    rules = gate(primary=f"text_to_clip/both/{metric}", better=better)
    assert run_gate(low, high, rules).promote
    assert not run_gate(high, low, rules).promote
    assert run_gate(low, low, rules).promote is not better


def test_reason_of_the_primary_has_all_figures() -> None:
    reason = run_gate(scores(ranks_with(120)), scores(ranks_with(100)), gate(better=True)).reasons[0]
    assert reason.startswith(f"pass: {PRIMARY} is 60 against the champion's 50, better by 10.0 (95 % interval +")
    assert reason.endswith("on 200 paired queries; its lower end must be above 0")
    worse = run_gate(scores(ranks_with(90)), scores(ranks_with(100)), gate()).reasons[0]
    assert worse.startswith(f"FAIL: {PRIMARY} is 45 against the champion's 50, worse by 5.00 (95 %")
    assert worse.endswith("the difference must not be below 0")


def test_queries_are_paired_by_id_not_by_order() -> None:
    champion = scores(ranks_with(100))
    table = champion.queries["text_to_clip/both"]
    order = np.random.default_rng(0).permutation(200)
    moved = QueryTable(
        tuple(table.query_ids[row] for row in order),
        tuple(table.clip_ids[row] for row in order),
        QueryRanks(table.ranks.rank[order], table.ranks.hits[order]),
    )
    shuffled = Scores(champion.test_set, champion.values, champion.intervals, {"text_to_clip/both": moved})
    assert ", equal (95 % interval +0.00 to +0.00)" in run_gate(shuffled, champion, gate()).reasons[0]
    one_more = run_gate(scores(ranks_with(140)), shuffled, gate(better=True))
    assert one_more.reasons == run_gate(scores(ranks_with(140)), champion, gate(better=True)).reasons


@pytest.mark.parametrize(
    ("candidate", "tolerance", "promote"),
    [(60.0, 0.0, True), (59.9, 0.0, False), (58.0, 2.0, True), (57.9, 2.0, False), (90.0, 0.0, True)],
)
def test_a_guard_may_be_worse_by_its_tolerance(candidate: float, tolerance: float, promote: bool) -> None:
    found = run_gate(scores(ranks_with(9), candidate), scores(ranks_with(9), 60.0), gate(guards=[(PROBE, tolerance)]))
    assert found.promote is promote


def test_a_guard_of_a_rank_may_be_greater_by_its_tolerance() -> None:
    low, high = scores([2.0] * 10), scores([4.0] * 10)
    for tolerance, promote in [(1.9, False), (2.0, True)]:
        found = run_gate(high, low, gate(guards=[("text_to_clip/both/MnR", tolerance)]))
        assert found.promote is promote
        assert "MnR is 4 against the champion's 2, worse by 2; worse by" in found.reasons[1]


def test_the_reason_of_a_guard_has_the_change() -> None:
    champion = scores(ranks_with(9), 60.0)
    rules = gate(guards=[(PROBE, 1.0)])
    for probe, word in [(60.0, "equal"), (61.5, "better by 1.5"), (59.5, "worse by 0.5")]:
        assert (
            f"champion's 60, {word}; worse by 1 at most"
            in run_gate(scores(ranks_with(9), probe), champion, rules).reasons[1]
        )


def test_a_bound_missed_by_rounding_alone_is_met() -> None:
    champion, candidate = scores(ranks_with(9), 0.8), scores(ranks_with(9), 0.7)
    assert 0.8 - 0.7 > 0.1
    assert run_gate(candidate, champion, gate(guards=[(PROBE, 0.1)], floors={PROBE: 0.7 + 1e-12})).promote


@pytest.mark.parametrize("passing", list(itertools.product([True, False], repeat=3)))
def test_all_reasons_are_given_and_all_must_pass(passing: tuple[bool, bool, bool]) -> None:
    floor, primary, guard = passing
    rules = gate(
        floors={PROBE: 10.0 if floor else 99.0},
        guards=[("text_to_clip/both/MnR", 0.0 if primary else 100.0), (PROBE, 0.0)],
    )
    candidate = scores(ranks_with(110 if primary else 90), 60.0 if guard else 50.0)
    decision = run_gate(candidate, scores(ranks_with(100), 60.0), rules)
    assert decision.promote is all(passing)
    marks = [reason.split(":")[0] == "pass" for reason in decision.reasons]
    assert marks == [floor, primary, True, guard]


def test_another_test_set_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"champion was evaluated on test set old .* candidate on new.* champion again"
    ):
        run_gate(scores(ranks_with(9), test_set="new"), scores(ranks_with(9), test_set="old"), gate())


def test_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different queries of text_to_clip/both: 400 .* champion again"):
        run_gate(scores(ranks_with(9)), scores(ranks_with(9), prefix="other"), gate())


@pytest.mark.parametrize("champion", [None, scores(ranks_with(9))])
@pytest.mark.parametrize(
    "rules",
    [
        gate(floors={"probe/typo": 1.0}),
        gate(guards=[("probe/typo", 1.0)]),
        gate(primary="text_to_clip/typo/R@1"),
    ],
)
def test_a_score_that_was_not_measured_is_named(rules: GateConfig, champion: Scores | None) -> None:
    with pytest.raises(ValueError, match=r"the candidate has no score .*typo.* params.yaml.* it has probe/nonverbal"):
        run_gate(scores(ranks_with(9)), champion, rules)


def test_a_champion_without_the_score_must_be_evaluated_again() -> None:
    champion = scores(ranks_with(9))
    bare = Scores(champion.test_set, {k: v for k, v in champion.values.items() if k != PROBE}, {}, champion.queries)
    with pytest.raises(ValueError, match=r"the champion has no score probe.*\(evaluate the champion again"):
        run_gate(scores(ranks_with(9)), bare, gate(guards=[(PROBE, 1.0)]))


def test_primary_needs_per_query_results() -> None:
    with pytest.raises(ValueError, match=r"no per-query results for the primary score probe/nonverbal/sound/R@1"):
        run_gate(scores(ranks_with(9)), None, gate(primary=PROBE))


def captioned(values: Sequence[float], prefix: str = "clip") -> Scores:
    clips = tuple(f"{prefix}{index}" for index in range(len(values)))
    return summarise_samples("abc", {CIDER: Samples(clips, np.asarray(values, float))}, 100, 0, {}, {})


def test_a_mean_over_clips_is_compared_clip_by_clip() -> None:
    rng = np.random.default_rng(0)
    base = rng.uniform(0, 3, 100)
    better = captioned((base + rng.uniform(-0.05, 0.15, 100))[::-1])
    champion = captioned(base[::-1])
    decision = run_gate(better, champion, gate(primary=CIDER, better=True, floors={CIDER: 1.0}))
    assert decision.promote
    assert "on 100 paired clips" in decision.reasons[1]
    assert not run_gate(champion, better, gate(primary=CIDER)).promote
    assert not run_gate(captioned([0.5, 0.7]), None, gate(primary=CIDER, floors={CIDER: 1.0})).promote
    with pytest.raises(ValueError, match=r"different clips of caption/both/CIDEr: 200 .* champion again"):
        run_gate(better, captioned(base, prefix="other"), gate(primary=CIDER))


def test_same_seed_same_decision() -> None:
    candidate, champion = scores(ranks_with(104)), scores(ranks_with(100))
    assert run_gate(candidate, champion, gate(better=True), 1) == run_gate(candidate, champion, gate(better=True), 1)


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=2, max_size=40))
@settings(deadline=None, max_examples=50)
def test_not_both_of_two_models_are_better_than_the_other(pairs: list[tuple[int, int]]) -> None:
    one, other = scores([first for first, _ in pairs]), scores([second for _, second in pairs])
    strict, lenient = gate(better=True), gate()
    assert not (run_gate(one, other, strict).promote and run_gate(other, one, strict).promote)
    assert run_gate(one, other, lenient).promote or run_gate(other, one, lenient).promote
    if run_gate(one, other, strict).promote:
        assert run_gate(one, other, lenient).promote


@pytest.mark.parametrize(("queries", "promote"), [(2, False), (98, False), (100, True)])
def test_a_test_set_that_is_too_small_to_tell_never_replaces_a_champion(queries: int, promote: bool) -> None:
    better, worse = scores(ranks_with(queries, queries)), scores(ranks_with(0, queries))
    decision = run_gate(better, worse, gate(min_clips=50))
    assert decision.promote is promote
    said = f"FAIL: the test set is too small to tell: {PRIMARY} is of {queries // 2} clips, at least 50 are required"
    assert any(reason.startswith(said) for reason in decision.reasons) is not promote
    assert run_gate(better, worse, gate(min_clips=1)).promote
    assert run_gate(better, None, gate(min_clips=50)).promote
