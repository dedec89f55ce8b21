"""The queries of StampScenes: every kind in both sorts of phrasing, each with exactly the clips of which it is true."""

import pytest

from clip4vla.config import StampScenesConfig
from clip4vla.corpora.stampscenes.phrasings import ROLES, TEMPLATES
from clip4vla.corpora.stampscenes.queries import KINDS, queries
from clip4vla.corpora.stampscenes.scenes import Scene, caption_scenes, captions

STAMPS_USED, SOUNDING = 30, 12
LABELS = [f"a stamp{index}x" for index in range(STAMPS_USED)]
SPOKEN = [f"una cosa{index}x" for index in range(STAMPS_USED)]


@pytest.fixture
def scenes(stampscenes_config: StampScenesConfig) -> list[Scene]:
    pairs = {"train": 40, "val": 20, "test": 40}
    changes = {"caption_pairs": pairs, "pictures_per_pair": dict.fromkeys(pairs, 3)}
    return caption_scenes(stampscenes_config.model_copy(update=changes), STAMPS_USED, SOUNDING)


def test_every_kind_is_asked_for_in_both_sorts_of_phrasing(scenes: list[Scene]) -> None:
    for entries in queries(scenes, LABELS, SPOKEN, 1).values():
        found = {(entry["kind"], entry["phrasing"]) for entry in entries}
        assert found == {(kind, phrasing) for kind in KINDS for phrasing in ("trained", "held_out")}
        sentences = [entry["query"] for entry in entries]
        assert len(set(sentences)) == len(sentences)


def test_the_right_clips_are_all_those_whose_things_the_sentence_names(scenes: list[Scene]) -> None:
    number = {"all": 3, "two": 2}
    for split, entries in queries(scenes, LABELS, SPOKEN, 1).items():
        of_split = {scene.clip_id: scene for scene in scenes if scene.split == split}
        for entry in entries:
            template, stamps = read(entry["query"])
            assert len(stamps) == number.get(entry["kind"], 1)
            assert template in TEMPLATES[frozenset(stamps)][entry["phrasing"]]
            right = [clip for clip, scene in of_split.items() if stamps.items() <= scene.stamps.items()]
            assert entry["clips"] == right != []


def read(sentence: str) -> tuple[str, dict[str, int]]:
    """The template of a sentence and the stamps that it names, by trying all of them."""
    for roles, phrasings in TEMPLATES.items():
        for template in (*phrasings["trained"], *phrasings["held_out"]):
            stamps, filled = {}, template
            for role in roles:
                vocabulary = SPOKEN if role == "said" else LABELS
                for index, word in enumerate(vocabulary):
                    trial = filled.replace(f"{{{role}}}", word)
                    # the text around the words must agree up to this one
                    if word in sentence and matches(trial, sentence):
                        stamps[role], filled = index, trial
                        break
            if filled == sentence:
                return template, stamps
    raise AssertionError(sentence)


def matches(trial: str, sentence: str) -> bool:
    """Whether a template with some roles filled in can still become the sentence."""
    for role in ROLES:
        trial = trial.replace(f"{{{role}}}", "\0")
    pieces, at = trial.split("\0"), 0
    for piece in pieces:
        at = sentence.find(piece, at)
        if at < 0:
            return False
        at += len(piece)
    return sentence.startswith(pieces[0]) and sentence.endswith(pieces[-1])


def test_unrelated_sound_is_asked_for_by_what_only_such_clips_show(scenes: list[Scene]) -> None:
    by_id = {scene.clip_id: scene for scene in scenes}
    entries = [e for e in queries(scenes, LABELS, SPOKEN, 1)["test"] if e["kind"] == "unrelated_sound"]
    assert {by_id[clip].soundtrack for entry in entries for clip in entry["clips"]} == {"unrelated"}
    stored = {
        caption
        for scene in scenes
        if scene.split == "test" and scene.soundtrack == "unrelated"
        for caption in captions(scene, LABELS, SPOKEN, 1)
    }
    assert stored <= {entry["query"] for entry in entries if entry["phrasing"] == "trained"}


def test_a_word_that_is_the_same_in_both_languages_is_not_asked_for_alone(scenes: list[Scene]) -> None:
    entries = queries(scenes, LABELS, LABELS, 1)["test"]
    assert not {entry["query"] for entry in entries} & set(LABELS)
    assert {f"a picture of {label}" for label in LABELS} & {entry["query"] for entry in entries}


def test_queries_are_a_function_of_the_seed(scenes: list[Scene]) -> None:
    assert queries(scenes, LABELS, SPOKEN, 1) == queries(scenes, LABELS, SPOKEN, 1)
    assert queries(scenes, LABELS, SPOKEN, 1) != queries(scenes, LABELS, SPOKEN, 2)
