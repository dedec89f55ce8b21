"""Reports of an evaluation: what a model did with the clips of a test set, in, a `Page` to look at, out.

Scores say how good a model is, pages what that means. Shown are the best cases, those in the middle and the worst,
each clip with its pictures and its sound.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np

from clip4vla.clips.loader import ClipStore
from clip4vla.clips.show import clip_card
from clip4vla.evaluation.figures import DIRECTIONS, LABELS
from clip4vla.evaluation.retrieval import METRICS, FloatArray
from clip4vla.evaluation.scores import Scores
from clip4vla.evaluation.suite import Gallery
from clip4vla.pages import Card, Lines, Mark, Page, Section, Table
from clip4vla.records import MODALITIES, Modality

QUERIES = 3
"""Queries, of different clips, among the best, in the middle and among the worst."""
FOUND = 5
"""Clips shown of what a query finds."""
CAPTIONED = 8
"""Clips among the best, in the middle and among the worst of a captioning."""

Found = Mapping[Modality, FloatArray]
"""Similarities (Q, G) by modality."""
Item = TypeVar("Item")


def retrieval_page(title: str, scores: Scores, gallery: Gallery, store: ClipStore, sample_rate: int) -> Page:
    """The report of a retrieval text → clip: scores, then what the best, median and worst queries found.

    Args:
        scores: of `gallery`.
        store: the clips of `gallery`, in its order.
        sample_rate: of the stored sounds.

    Raises:
        ValueError: `store` holds other clips than `gallery`.
    """
    if store.clip_ids != gallery.clip_ids:
        raise ValueError(f"the store's {len(store)} clips are not the {len(gallery.clip_ids)} of the gallery")
    order = _order(scores, gallery)
    shown = _spread(order, [gallery.caption_clips[query] for query in order], QUERIES)
    searcher = _Searcher(scores, gallery, store, sample_rate)
    return Page(
        title,
        note="Sentences, and the clips nearest to each by vision and audio together. Below a clip stand the cosines of "
        "the sentence with both, with what is seen alone and with what is heard alone.",
        facts={
            "clips": f"{len(gallery.clip_ids):,}",
            "sentences": f"{len(gallery.sentences):,}",
            "test set": gallery.test_set,
        },
        tables=score_tables(scores),
        sections=[
            Section(name, sections=[searcher.section(query) for query in queries]) for name, queries in shown.items()
        ],
    )


def score_tables(scores: Scores) -> list[Table]:
    """Retrieval by direction and modality and, where there is one, the type-token probe, with 95 % intervals."""
    names = {
        f"{DIRECTIONS[d]}, {LABELS[m]}": f"{d}/{m}"
        for d in DIRECTIONS
        for m in MODALITIES
        if f"{d}/{m}/R@1" in scores.values
    }
    rows = [[name, *(scores.shown(f"{group}/{metric}") for metric in METRICS)] for name, group in names.items()]
    tables = [Table("Scores, with 95 % intervals (R@k: per cent; MdR, MnR: ranks)", ["", *METRICS], rows)]
    probes = sorted(name for name in scores.values if name.startswith("probe/"))
    if probes:
        rows = [[name.removeprefix("probe/"), scores.shown(name)] for name in probes]
        tables.append(Table("Told by the audio tower, per cent", ["token / what is told / score", ""], rows))
    return tables


@dataclass(frozen=True)
class Captioned:
    """A clip and what a model said of it."""

    clip_id: str
    references: Sequence[str]
    generated: str
    score: float
    """By which the clips are ordered; higher is better."""
    scores: Mapping[str, float]
    """What the card shows by name, `score` among them or not."""
    marks: Sequence[Mark] = ()
    """What of the caption is right or wrong, such as the thing seen."""


def captioning_page(
    title: str, note: str, tables: Sequence[Table], captioned: Sequence[Captioned], store: ClipStore, sample_rate: int
) -> Page:
    """The report of a captioning: `tables`, then the best, median and worst clips with all that was said of them.

    Args:
        captioned: one per clip, in any order.
        store: holds their clips; of clips that share an id the first one is shown.
        sample_rate: of the stored sounds.

    Raises:
        ValueError: `store` lacks a clip that is shown.
    """
    order = sorted(captioned, key=lambda each: (-each.score, each.clip_id))
    shown = _spread(order, [each.clip_id for each in order], CAPTIONED)
    sections = [
        Section(name, cards=[_caption_card(each, store, sample_rate) for each in cases])
        for name, cases in shown.items()
    ]
    return Page(title, note, {"clips": f"{len(captioned):,}"}, tables, sections)


def _caption_card(captioned: Captioned, store: ClipStore, sample_rate: int) -> Card:
    if captioned.clip_id not in store.clip_ids:
        raise ValueError(f"there is no clip {captioned.clip_id} to show in {', '.join(map(str, store.paths))}")
    [clip] = store.take([store.clip_ids.index(captioned.clip_id)])
    texts = [Lines("generated", [captioned.generated]), Lines("references", captioned.references)]
    return replace(
        clip_card(clip, sample_rate, captioned.clip_id), marks=captioned.marks, scores=captioned.scores, texts=texts
    )


@dataclass(frozen=True)
class _Searcher:
    """Shows what a query found."""

    scores: Scores
    gallery: Gallery
    store: ClipStore
    sample_rate: int

    def section(self, query: int) -> Section:
        """The query, its rank and the clips it found first, followed by the one that was meant if not among them."""
        cosines = {m: self.gallery.captions[query] @ self.gallery.clips[m].T for m in MODALITIES}
        order = np.argsort(-cosines["both"], kind="stable")
        meant = np.array([clip_id == self.gallery.caption_clips[query] for clip_id in self.gallery.clip_ids])
        places = list(range(min(FOUND, len(order))))
        if not meant[order[places]].any():
            places.append(int(np.flatnonzero(meant[order])[0]))
        cards = [self._card(int(order[place]), place + 1, meant, cosines) for place in places]
        return Section(f"“{self.gallery.sentences[query]}”", self._ranks(query), [self._mark(query)], cards)

    def _ranks(self, query: int) -> str:
        vision, audio = self._rank(query, "vision"), self._rank(query, "audio")
        return (
            f"The clip is {self.gallery.caption_clips[query]}. By vision alone its rank is {vision:g}, "
            f"by audio alone {audio:g}."
        )

    def _mark(self, query: int) -> Mark:
        rank = self._rank(query, "both")
        return Mark(rank == 1, f"rank {rank:g} of {len(self.gallery.clip_ids):,}")

    def _rank(self, query: int, modality: Modality) -> float:
        return float(self.scores.queries[f"text_to_clip/{modality}"].ranks.rank[query])

    def _card(self, row: int, place: int, meant: np.ndarray, cosines: Mapping[Modality, np.ndarray]) -> Card:
        [clip] = self.store.take([row])
        return replace(
            clip_card(clip, self.sample_rate, f"{place}. {clip.clip_id}"),
            marks=[Mark(True, "the clip of the sentence")] if meant[row] else [],
            scores={m: float(cosines[m][row]) for m in ("both", "vision", "audio")},
            texts=[Lines("its sentences", [text.text for text in clip.texts])],
        )


def _order(scores: Scores, gallery: Gallery) -> list[int]:
    """Queries from best to worst: by the rank of their clip, then by how far it is ahead of the best other one."""
    rank = scores.queries["text_to_clip/both"].ranks.rank
    similarity = gallery.similarity("both")
    meant = np.asarray(gallery.caption_clips)[:, None] == np.asarray(gallery.clip_ids)
    ahead = np.where(meant, similarity, -np.inf).max(axis=1) - np.where(meant, -np.inf, similarity).max(axis=1)
    return np.lexsort((-ahead, rank)).tolist()


def _spread(order: Sequence[Item], keys: Sequence[str], count: int) -> dict[str, list[Item]]:
    """Up to `count` of the best, those in the middle and the worst of `order`, which begins with the best.

    No key is there twice: where there are few, each part has a third of them, and one without any is left out.
    """
    count = min(count, max(1, len(set(keys)) // 3))
    last = len(order) - 1
    best = _nearest(0, range(len(order)), keys, count)
    worst = _nearest(last, _others(best, range(len(order)), keys), keys, count)
    median = _nearest(last / 2, _others([*best, *worst], range(len(order)), keys), keys, count)
    parts = {"Best": best, "Median": sorted(median), "Worst": worst}
    return {name: [order[place] for place in places] for name, places in parts.items() if places}


def _nearest(to: float, places: Sequence[int], keys: Sequence[str], count: int) -> list[int]:
    """Up to `count` of `places`, the nearest first, no key twice."""
    first: dict[str, int] = {}
    for place in sorted(places, key=lambda place: abs(place - to)):
        first.setdefault(keys[place], place)
    return list(first.values())[:count]


def _others(taken: Sequence[int], places: Sequence[int], keys: Sequence[str]) -> list[int]:
    """Those of `places` whose keys are none of those taken."""
    known = {keys[place] for place in taken}
    return [place for place in places if keys[place] not in known]
