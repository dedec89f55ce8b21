"""The gate: scores of a candidate and of the champion in, a `Decision` with its reasons out.

A pure function, so that a promotion can be reviewed with nothing but two sets of scores. All
conditions are checked and reported, not only the first that fails:

- every *floor* is met (of a score that is better when lower, the floor is the greatest value allowed);
- the *primary* score stands against the champion's, both measured on the same queries or clips and paired: with
  `require_better` the lower end of the difference's 95 % interval is above 0; without, the difference itself
  is not below 0 (an equal candidate passes; chance may pass a slightly worse one);
- with `never_worse_than_best_modality`, for every kind of query, both modalities together are not worse than the
  better single one by more than the tolerance, paired on the same queries;
- against a champion, the primary is of `min_clips` different clips at least;
- no *guard* score is worse than the champion's by more than its tolerance, as measured, without an interval.

A difference is always counted so that more is better: champion minus candidate for `MdR` and `MnR`. Without a
champion, only what concerns the candidate alone decides.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from clip4vla.config import GateConfig, GuardConfig
from clip4vla.evaluation.retrieval_metrics import METRICS, FloatArray, Statistic, paired_difference, weighted_mean
from clip4vla.evaluation.scores import BY_QUERY, Scores, lower_is_better
from clip4vla.records import MODALITIES, Decision
from clip4vla.utils.numbers import format_bound, format_difference, format_score

ROUNDING = 1e-9
"""A score may miss its bound by this much: 0.7 - 0.1 is not exactly 0.6."""

Verdict = tuple[bool, str]


def decide(candidate: Scores, champion: Scores | None, gate: GateConfig, resamples: int, seed: int) -> Decision:
    """Compare a candidate with the champion.

    Args:
        champion: scores of the model in use, or None where there is none yet.
        resamples: bootstrap resamples behind the primary's interval.
        seed: of the bootstrap; the same scores and seed give the same decision.

    Raises:
        ValueError: the gate compares modalities, but the candidate has no scores by kind of query; or the candidate or
            the champion lacks a score that the gate names, or per-query results of the primary; or the two were
            measured on different test sets or queries, so that the champion must be evaluated again.
    """
    _check_names(candidate, gate, "the candidate", "see gates in params.yaml")
    verdicts = list(_floors(candidate, gate))
    if gate.never_worse_than_best_modality is not None:
        verdicts.extend(_against_modalities(candidate, gate.never_worse_than_best_modality, resamples, seed))
    if champion is None:
        verdicts.append((True, "there is no champion yet to compare with"))
    else:
        _check_same_test(candidate, champion)
        _check_names(champion, gate, "the champion", "evaluate the champion again first")
        verdicts.extend(_size(candidate, gate))
        verdicts.append(_primary(candidate, champion, gate, resamples, seed))
        verdicts.extend(_guard(candidate, champion, guard) for guard in gate.guards)
    reasons = tuple(f"{'pass' if passed else 'FAIL'}: {sentence}" for passed, sentence in verdicts)
    return Decision(all(passed for passed, _ in verdicts), reasons)


def _check_names(scores: Scores, gate: GateConfig, whose: str, advice: str) -> None:
    named = [*gate.floors, gate.primary, *(guard.score for guard in gate.guards)]
    unknown = sorted({name for name in named if name not in scores.values})
    if unknown:
        known = ", ".join(sorted(scores.values))
        raise ValueError(f"{whose} has no score {', '.join(unknown)} ({advice}); it has {known}")
    table, _, metric = gate.primary.rpartition("/")
    if gate.primary not in scores.samples and (table not in scores.queries or metric not in METRICS):
        raise ValueError(f"{whose} has no per-query results for the primary score {gate.primary} ({advice})")


def _check_same_test(candidate: Scores, champion: Scores) -> None:
    if candidate.test_set != champion.test_set:
        raise ValueError(
            f"the champion was evaluated on test set {champion.test_set} and the candidate on {candidate.test_set}: "
            "evaluate the champion again on the candidate's test set first"
        )


def _floors(candidate: Scores, gate: GateConfig) -> Iterator[Verdict]:
    for name, floor in gate.floors.items():
        value, sign = candidate.values[name], _sign(name)
        bound = "<=" if lower_is_better(name) else ">="
        sentence = f"{name} is {format_bound(value)}, required: {bound} {format_bound(floor)}"
        yield sign * (value - floor) >= -ROUNDING, sentence


def _against_modalities(candidate: Scores, tolerance: float, resamples: int, seed: int) -> Iterator[Verdict]:
    """For each kind of query: both modalities together against the better single one, paired on the same queries."""
    kinds = candidate.query_kinds()
    if not kinds:
        raise ValueError("the candidate has no scores by kind of query, which never_worse_than_best_modality compares")
    for kind in kinds:
        group = f"{BY_QUERY}/{kind}"
        single = {m: candidate.values[f"{group}/{m}/R@1"] for m in MODALITIES if m != "both"}
        best = max(single, key=lambda modality: single[modality])
        both, alone = _sample(candidate, f"{group}/both/R@1"), _sample(candidate, f"{group}/{best}/R@1")
        difference, low, high = paired_difference(both.values, alone.values, both.clip_ids, resamples, seed)
        yield (
            difference >= -tolerance - ROUNDING,
            f"queries of the kind {kind!r}: R@1 of both modalities together is "
            f"{format_bound(candidate.values[f'{group}/both/R@1'])}, of {best} alone {format_bound(single[best])}, a "
            f"difference of {format_difference(difference)} (95 % interval {format_difference(low)} to "
            f"{format_difference(high)}); required: >= {format_bound(-tolerance)}",
        )


def _size(candidate: Scores, gate: GateConfig) -> Iterator[Verdict]:
    """Against a champion only: too few clips are said, enough are not."""
    clips = len(set(_sample(candidate, gate.primary).clip_ids))
    if clips < gate.min_clips:
        yield (
            False,
            f"the test set is too small to tell: {gate.primary} is of {clips} clips, at least {gate.min_clips} are "
            "required to replace a champion (min_clips)",
        )


def _primary(candidate: Scores, champion: Scores, gate: GateConfig, resamples: int, seed: int) -> Verdict:
    ours, theirs, sign = _sample(candidate, gate.primary), _sample(champion, gate.primary), _sign(gate.primary)
    order = _same_queries(ours, theirs)
    difference, low, high = paired_difference(
        sign * ours.values, sign * theirs.values[order], ours.clip_ids, resamples, seed, ours.statistic
    )
    if gate.require_better:
        passed, rule = low > ROUNDING, "its lower end must be above 0"
    else:
        passed, rule = difference >= -ROUNDING, "the difference must not be below 0"
    value, reference = candidate.values[gate.primary], champion.values[gate.primary]
    change = "equal"
    if abs(difference) > ROUNDING:
        change = f"{'worse' if difference < 0 else 'better'} by {format_score('difference', abs(difference))}"
    return passed, (
        f"{gate.primary} is {format_bound(value)} against the champion's {format_bound(reference)}, {change} (95 % "
        f"interval {format_difference(low)} to {format_difference(high)}) on {len(order)} paired {ours.of}; {rule}"
    )


@dataclass(frozen=True)
class _Sample:
    """What a score is made of."""

    ids: tuple[str, ...]
    """(Q,)"""
    clip_ids: tuple[str, ...]
    """(Q,) those of one clip are resampled together."""
    values: FloatArray
    """(Q,)"""
    statistic: Statistic
    of: str
    """What the values are of."""
    table: str
    """Where they stand."""


def _sample(scores: Scores, name: str) -> _Sample:
    if name in scores.samples:
        found = scores.samples[name]
        return _Sample(found.clip_ids, found.clip_ids, found.values, weighted_mean, "clips", name)
    table_name, _, metric_name = name.rpartition("/")
    table, metric = scores.queries[table_name], METRICS[metric_name]
    return _Sample(table.query_ids, table.clip_ids, metric.values(table.ranks), metric.statistic, "queries", table_name)


def _same_queries(ours: _Sample, theirs: _Sample) -> np.ndarray:
    """Rows (Q,) of `theirs` in the order of `ours`."""
    rows = {query: row for row, query in enumerate(theirs.ids)}
    if rows.keys() != set(ours.ids):
        odd = sorted(rows.keys() ^ set(ours.ids))
        raise ValueError(
            f"candidate and champion answered different {ours.of} of {ours.table}: {len(odd)} are not shared, such as "
            f"{odd[0]}; evaluate the champion again first"
        )
    return np.array([rows[query] for query in ours.ids])


def _guard(candidate: Scores, champion: Scores, guard: GuardConfig) -> Verdict:
    value, reference = candidate.values[guard.score], champion.values[guard.score]
    loss = _sign(guard.score) * (reference - value)
    change = "equal"
    if abs(loss) > ROUNDING:
        change = f"{'worse' if loss > 0 else 'better'} by {format_bound(abs(loss))}"
    sentence = (
        f"{guard.score} is {format_bound(value)} against the champion's {format_bound(reference)}, {change}; "
        f"worse by {format_bound(guard.tolerance)} at most is allowed"
    )
    return loss <= guard.tolerance + ROUNDING, sentence


def _sign(name: str) -> float:
    return -1.0 if lower_is_better(name) else 1.0
