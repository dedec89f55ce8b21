"""The report of a retrieval benchmark: scores, an embedded test split and its clips in, a `Page` out.

Scores say how good a model is; the page shows what that means: for the best, median and worst queries the clips that
were found, each with pictures and sound.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from clip4vla.clips.dataset import ClipDataset
from clip4vla.evaluation.queries import WEIGHT
from clip4vla.evaluation.retrieval_evaluator import EmbeddedSplit
from clip4vla.evaluation.retrieval_metrics import METRICS
from clip4vla.evaluation.scores import UNSEEN, WITH_SOUND, Scores
from clip4vla.inference.index import EXPERT_LABELS
from clip4vla.records import MODALITIES, Modality
from clip4vla.reports.cards import SCORE_NOTE, clip_card, cosine_facts
from clip4vla.reports.examples import pick_examples
from clip4vla.reports.pages import Card, Lines, Mark, Page, Section
from clip4vla.reports.tables import (
    DIRECTION_LABELS,
    MODALITY_LABELS,
    QUERY_GROUP_LABELS,
    RENDERING_LABELS,
    Table,
    score_cell,
    score_table,
)
from clip4vla.utils.numbers import format_count

QUERIES = 3
"""Queries, of different clips, of each kind of example."""
FOUND = 5
"""Clips shown of what a query finds."""

NOTE = (
    f"Scores with 95 % intervals, then the best, median and worst test sentences by {MODALITY_LABELS['both']}, each "
    f"with the {FOUND} clips whose score is highest. A card shows the score by modality: {SCORE_NOTE}."
)


def retrieval_page(title: str, scores: Scores, split: EmbeddedSplit, dataset: ClipDataset, sample_rate: int) -> Page:
    """The report of a retrieval text → clip.

    Args:
        scores: of `split`.
        dataset: the clips of `split`, in its order.
        sample_rate: of the stored sounds.

    Raises:
        ValueError: `dataset` holds other clips than `split`.
    """
    if dataset.clip_ids != split.clip_ids:
        raise ValueError(f"the dataset's {len(dataset)} clips are not the {len(split.clip_ids)} of the split")
    order = _best_first(scores, split)
    examples = pick_examples(order, [split.caption_clips[query] for query in order], QUERIES)
    results = _Results(scores, split, dataset, sample_rate)
    sections = [
        Section(f"{name} queries", sections=[results.section(query) for query in queries])
        for name, queries in examples.items()
    ]
    facts = {
        "clips": format_count(split.size.clips),
        "clips with sound": format_count(split.size.with_sound),
        "sentences": format_count(len(split.sentences)),
        "test set": split.test_set,
    }
    return Page(title, NOTE, facts, retrieval_tables(scores), sections)


def retrieval_tables(scores: Scores) -> list[Table]:
    """A table for each direction, by modality, of all clips and of those with sound alone.

    Those of `query_tables` and `unseen_tables` and the probe of the audio type token follow. Those without scores are
    left out.
    """
    tables = []
    columns = {name: name for name in METRICS}
    for start, clips in (("", ""), (f"{WITH_SOUND}/", ", clips with sound alone")):
        for direction, label in DIRECTION_LABELS.items():
            groups = {MODALITY_LABELS[m]: f"{start}{direction}/{m}" for m in MODALITIES}
            groups["reranked"] = f"{start}{direction}/reranked"
            rows = {name: group for name, group in groups.items() if f"{group}/R@1" in scores.values}
            if rows:
                title = f"{label}{clips}: recall in per cent, median and mean rank"
                tables.append(score_table(title, scores, rows, columns))
    return [*tables, *query_tables(scores), *unseen_tables(scores), *_probe_tables(scores)]


def query_tables(scores: Scores) -> list[Table]:
    """R@1 by kind of query and modality, with the mean weights of the experts, for trained and for held-out phrasings.

    Those without scores are left out.
    """
    tables = []
    for group, label in QUERY_GROUP_LABELS.items():
        rows = {kind: f"{group}/{kind}" for kind in scores.query_kinds(group)}
        if not rows:
            continue
        columns = {MODALITY_LABELS[m]: f"{m}/R@1" for m in MODALITIES}
        experts = _weighted_experts(scores, next(iter(rows.values())))
        columns |= {f"weight of {EXPERT_LABELS.get(expert, expert)}": f"{WEIGHT}/{expert}" for expert in experts}
        title = f"{label}: R@1 in per cent" + (", mean weights of the experts" if experts else "")
        tables.append(score_table(title, scores, rows, columns))
    return tables


def unseen_tables(scores: Scores) -> list[Table]:
    """R@1 by kind of query for each corpus of the role `unseen`, beside the same queries on the original clips."""
    tables = []
    for corpus in scores.unseen_corpora():
        rows = [
            [
                kind,
                *(score_cell(scores, f"{group}/{corpus}/{kind}/both/R@1") for group in RENDERING_LABELS),
                format_count(len(scores.queries[f"{UNSEEN}/{corpus}/{kind}/both"].ranks)),
            ]
            for kind in scores.query_kinds(f"{UNSEEN}/{corpus}")
        ]
        title = f"{corpus}: R@1 in per cent by {MODALITY_LABELS['both']}, of the same queries"
        tables.append(Table(title, ["", *RENDERING_LABELS.values(), "queries"], rows))
    return tables


def _weighted_experts(scores: Scores, kind: str) -> list[str]:
    """The experts whose mean weights `scores` have for a kind of query, such as `by_query/seen`."""
    start = f"{kind}/{WEIGHT}/"
    return [name.removeprefix(start) for name in scores.values if name.startswith(start)]


def _probe_tables(scores: Scores) -> list[Table]:
    parts = [name.split("/") for name in scores.values if name.startswith("probe/") and name.endswith("/R@1")]
    if not parts:
        return []
    rows = {f"token {token}": f"probe/{token}" for token in sorted({part[1] for part in parts})}
    columns = {target: f"{target}/R@1" for target in sorted({part[2] for part in parts})}
    title = "Recognised by the audio tower: R@1 in per cent"
    return [score_table(title, scores, rows, columns)]


@dataclass(frozen=True)
class _Results:
    """Sections and cards of what queries found."""

    scores: Scores
    split: EmbeddedSplit
    dataset: ClipDataset
    sample_rate: int

    def section(self, query: int) -> Section:
        """The query, its rank and the clips it found first, followed by the right one if it is not among them."""
        cosines = {m: self.split.captions[query] @ self.split.clips[m].T for m in MODALITIES}
        order = np.argsort(-cosines["both"], kind="stable")
        right = np.array([clip_id == self.split.caption_clips[query] for clip_id in self.split.clip_ids])
        places = list(range(min(FOUND, len(order))))
        if not right[order[places]].any():
            places.append(int(np.flatnonzero(right[order])[0]))
        cards = [self._card(int(order[place]), place + 1, right, cosines) for place in places]
        return Section(f"“{self.split.sentences[query]}”", self._note(query), [self._mark(query)], cards)

    def _note(self, query: int) -> str:
        ranks = (f"{self._rank(query, m):g} by {m} alone" for m in MODALITIES if m != "both")
        return f"Right clip: {self.split.caption_clips[query]}. Its rank: {', '.join(ranks)}."

    def _mark(self, query: int) -> Mark:
        rank = self._rank(query, "both")
        return Mark(rank == 1, f"rank {rank:g} of {format_count(len(self.split.clip_ids))}")

    def _rank(self, query: int, modality: Modality) -> float:
        return float(self.scores.queries[f"text_to_clip/{modality}"].ranks.rank[query])

    def _card(self, row: int, place: int, right: np.ndarray, cosines: Mapping[Modality, np.ndarray]) -> Card:
        [clip] = self.dataset.take([row])
        return replace(
            clip_card(clip, self.sample_rate, f"{place}. {clip.clip_id}"),
            marks=[Mark(True, "right clip")] if right[row] else [],
            facts=cosine_facts({m: float(values[row]) for m, values in cosines.items()}),
            texts=[Lines("sentences of the clip", [text.text for text in clip.texts])],
        )


def _best_first(scores: Scores, split: EmbeddedSplit) -> list[int]:
    """Queries by the rank of their clip, then by its margin over the best other clip."""
    rank = scores.queries["text_to_clip/both"].ranks.rank
    similarity = split.similarity("both")
    right = np.asarray(split.caption_clips)[:, None] == np.asarray(split.clip_ids)
    best_right = np.where(right, similarity, -np.inf).max(axis=1)
    best_other = np.where(right, -np.inf, similarity).max(axis=1)
    return np.lexsort((best_other - best_right, rank)).tolist()
