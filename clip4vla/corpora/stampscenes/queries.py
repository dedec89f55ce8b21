"""The queries of StampScenes: caption scenes in, sentences of every kind with all clips of which each is true out.

A query names one stamp, two or all three. The kind `unrelated_sound` names stamps that only clips with unrelated
sound show, so that a score which listens to these clips finds others. Pure, seeded.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from clip4vla.corpora.stampscenes.phrasings import ROLES, TEMPLATES, Phrasing, Role
from clip4vla.corpora.stampscenes.scenes import Scene, fill, words_of
from clip4vla.records import Split

Kind = Literal["all", "two", "seen", "heard", "said", "unrelated_sound"]
KINDS: tuple[Kind, ...] = get_args(Kind)
PHRASINGS: tuple[Phrasing, ...] = get_args(Phrasing)
PER_STAMP: Mapping[Kind, int | None] = {"seen": 4, "heard": 4, "said": 4, "unrelated_sound": None}
"""Sentences in each sort of phrasing about each stamp; None takes every phrasing."""
PER_CLIP: Mapping[Phrasing, int] = {"trained": 2, "held_out": 1}
"""Sentences about each clip that name everything; one in each sort of phrasing names two stamps."""

StampsByRole = Mapping[Role, int]


def queries(
    scenes: Sequence[Scene], labels: Sequence[str], spoken: Sequence[str], seed: int
) -> dict[Split, list[dict[str, Any]]]:
    """The queries of val and test: `query`, `kind`, `phrasing`, and `clips`, the ids of all clips that are right.

    A bare word that is the same in both languages is left out: it could be about what is seen or what is said.
    """
    splits: tuple[Split, ...] = ("val", "test")
    return {
        split: _of_split([scene for scene in scenes if scene.split == split], labels, spoken, (seed, 6, index))
        for index, split in enumerate(splits)
    }


def _of_split(
    scenes: Sequence[Scene], labels: Sequence[str], spoken: Sequence[str], seed: Sequence[int]
) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    ambiguous = set(labels).intersection(spoken)
    entries = {
        fill(template, words_of(stamps, labels, spoken)): (kind, phrasing, stamps)
        for kind, stamps, count in _subjects(scenes, rng)
        for phrasing in PHRASINGS
        for template in _drawn(TEMPLATES[frozenset(stamps)][phrasing], count[phrasing], rng)
    }
    return [
        {"query": sentence, "kind": kind, "phrasing": phrasing, "clips": _true_of(stamps, scenes)}
        for sentence, (kind, phrasing, stamps) in entries.items()
        if sentence not in ambiguous
    ]


def _subjects(
    scenes: Sequence[Scene], rng: np.random.Generator
) -> Iterator[tuple[Kind, StampsByRole, Mapping[Phrasing, int | None]]]:
    """What is asked for, and by how many sentences of each sort of phrasing."""
    related = [scene for scene in scenes if scene.soundtrack == "related"]
    for scene in related:
        yield "all", scene.stamps, PER_CLIP
        left_out = ROLES[int(rng.integers(len(ROLES)))]
        two = {role: stamp for role, stamp in scene.stamps.items() if role != left_out}
        yield "two", two, dict.fromkeys(PHRASINGS, 1)
    single: tuple[tuple[Kind, Role, list[Scene]], ...] = (
        ("seen", "seen", [scene for scene in scenes if scene.soundtrack != "unrelated"]),
        ("heard", "heard", related),
        ("said", "said", related),
        ("unrelated_sound", "seen", [scene for scene in scenes if scene.soundtrack == "unrelated"]),
    )
    for kind, role, found in single:
        for stamp in sorted({scene.stamps[role] for scene in found}):
            yield kind, {role: stamp}, dict.fromkeys(PHRASINGS, PER_STAMP[kind])


def _drawn(templates: Sequence[str], count: int | None, rng: np.random.Generator) -> Iterable[str]:
    wanted = len(templates) if count is None else count
    return [templates[index] for index in rng.choice(len(templates), wanted, replace=False)]


def _true_of(stamps: StampsByRole, scenes: Sequence[Scene]) -> list[str]:
    return [scene.clip_id for scene in scenes if stamps.items() <= scene.stamps.items()]
