"""What the clips of StampScenes show, whatever the seed: no leak between splits, no clip that gives itself away."""

import re
from collections import Counter
from itertools import combinations

import pytest

from clip4vla.config import StampScenesConfig
from clip4vla.corpora.stampscenes.phrasings import CAPTION_TEMPLATES, ROLES, TEMPLATES
from clip4vla.corpora.stampscenes.scenes import (
    Scene,
    caption_scenes,
    caption_slots,
    captions,
    fill,
    pretraining_scenes,
    pretraining_text,
    sound_text,
    words_of,
)

STAMPS_USED, SOUNDING = 30, 14
LABELS = [f"a stamp{index}" for index in range(STAMPS_USED)]
SPOKEN = [f"una cosa{index}" for index in range(STAMPS_USED)]


def config(stampscenes_config: StampScenesConfig, seed: int) -> StampScenesConfig:
    pairs = {"train": 150, "val": 30, "test": 60}
    changes = {
        "seed": seed,
        "pretraining_clips": 100,
        "caption_pairs": pairs,
        "pictures_per_pair": dict.fromkeys(pairs, 3),
        "unrelated_sound": 0.15,
        "no_sound": 0.05,
    }
    return stampscenes_config.model_copy(update=changes)


@pytest.mark.parametrize("seed", range(5))
def test_no_pair_of_sound_and_word_is_in_two_splits(stampscenes_config: StampScenesConfig, seed: int) -> None:
    scenes = caption_scenes(config(stampscenes_config, seed), STAMPS_USED, SOUNDING)
    pairs = {
        split: {(s.heard, s.said) for s in scenes if s.split == split and s.soundtrack == "related"}
        for split in config(stampscenes_config, 0).caption_pairs
    }
    assert {split: len(found) for split, found in pairs.items()} == {"train": 150, "val": 30, "test": 60}
    for scene in scenes:
        if scene.soundtrack == "unrelated":
            pairs[scene.split].add((scene.heard, scene.said))
    for one, other in combinations(pairs.values(), 2):
        assert not one & other


@pytest.mark.parametrize("seed", range(5))
def test_the_three_stamps_of_a_caption_clip_differ(stampscenes_config: StampScenesConfig, seed: int) -> None:
    scenes = caption_scenes(config(stampscenes_config, seed), STAMPS_USED, SOUNDING)
    kinds = Counter(s.soundtrack for s in scenes)
    assert kinds == {"related": 720, "unrelated": 68 + 14 + 27, "none": 23 + 5 + 9}
    for scene in scenes:
        assert len(set(scene.stamps.values())) == len(scene.stamps) == (1 if scene.soundtrack == "none" else 3)
        assert scene.stamps.get("heard", 0) < SOUNDING
        assert max(scene.stamps.values()) < STAMPS_USED
    related = [s for s in scenes if s.soundtrack == "related"]
    assert len({(s.seen, s.heard, s.said) for s in related}) == len(related)
    assert [s.clip_id for s in scenes] == [f"video{index}" for index in range(len(scenes))]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("split", ["val", "test"])
def test_what_clips_without_related_sound_show_no_other_clip_shows(
    stampscenes_config: StampScenesConfig, seed: int, split: str
) -> None:
    scenes = [s for s in caption_scenes(config(stampscenes_config, seed), STAMPS_USED, SOUNDING) if s.split == split]
    shown = {kind: {s.seen for s in scenes if s.soundtrack == kind} for kind in ("related", "unrelated", "none")}
    assert all(shown.values())
    for one, other in combinations(shown.values(), 2):
        assert not one & other


@pytest.mark.parametrize("seed", range(3))
def test_a_part_of_pretraining_is_narrated_the_rest_sounding(stampscenes_config: StampScenesConfig, seed: int) -> None:
    narrated = config(stampscenes_config, seed).model_copy(update={"narrated": 0.7})
    scenes = pretraining_scenes(narrated, STAMPS_USED, SOUNDING)
    assert Counter(s.leading for s in scenes) == {"verbal": 70, "nonverbal": 30}
    assert len({s.clip_id for s in scenes}) == 100
    for scene in scenes:
        assert scene.seen == (scene.said if scene.leading == "verbal" else scene.heard)
        assert scene.said != scene.heard  # the other kind of sound never gives the answer
        text = pretraining_text(scene, LABELS, SPOKEN)
        assert text.audio_type == scene.leading
        assert (SPOKEN if scene.leading == "verbal" else LABELS)[scene.seen] in text.text


def test_scenes_and_captions_are_a_function_of_the_seed(stampscenes_config: StampScenesConfig) -> None:
    one, same, other = (config(stampscenes_config, seed) for seed in (1, 1, 2))
    for scenes in (caption_scenes, pretraining_scenes):
        assert scenes(one, STAMPS_USED, SOUNDING) == scenes(same, STAMPS_USED, SOUNDING)
        assert scenes(one, STAMPS_USED, SOUNDING) != scenes(other, STAMPS_USED, SOUNDING)
    scene = caption_scenes(one, STAMPS_USED, SOUNDING)[0]
    assert captions(scene, LABELS, SPOKEN, 1) == captions(scene, LABELS, SPOKEN, 1)


def test_captions_say_what_is_seen_heard_and_said_and_in_training_parts_of_it(
    stampscenes_config: StampScenesConfig,
) -> None:
    for scene in caption_scenes(config(stampscenes_config, 1), STAMPS_USED, SOUNDING):
        sentences = captions(scene, LABELS, SPOKEN, 1)
        assert len(set(sentences)) == len(sentences)
        named = Counter(frozenset(named_by(sentence, scene)) for sentence in sentences)
        if scene.soundtrack != "related":
            assert named == {frozenset({"seen"}): 5 if scene.split == "train" else 3}
        elif scene.split == "train":
            assert named == {roles: {1: 3, 2: 2, 3: 8}[len(roles)] for roles in TEMPLATES}
        else:
            assert named == {frozenset(ROLES): 3}


def test_too_many_pairs_are_refused(stampscenes_config: StampScenesConfig) -> None:
    with pytest.raises(ValueError, match=r"asks for 240 pairs besides those of unrelated sound, but 8 stamps give 28"):
        caption_scenes(config(stampscenes_config, 1), 8, 4)


def named_by(sentence: str, scene: Scene) -> set[str]:
    """The roles of a scene that a sentence names."""
    words = words_of(scene.stamps, LABELS, SPOKEN)
    return {role for role, word in words.items() if re.search(rf"\b{word}\b", sentence)}


def test_clips_shown_apart_that_show_the_same_thing_have_the_same_captions(
    stampscenes_config: StampScenesConfig,
) -> None:
    found: dict[tuple[str, int], set[tuple[str, ...]]] = {}
    for scene in caption_scenes(config(stampscenes_config, 1), STAMPS_USED, SOUNDING):
        if scene.soundtrack != "related" and scene.split != "train":
            found.setdefault((scene.split, scene.seen), set()).add(tuple(captions(scene, LABELS, SPOKEN, 1)))
    assert found
    assert all(len(captions_of_thing) == 1 for captions_of_thing in found.values())


def test_no_training_clip_has_a_held_out_phrasing(stampscenes_config: StampScenesConfig) -> None:
    for phrasings in TEMPLATES.values():
        assert not set(phrasings["trained"]) & set(phrasings["held_out"])
    for scene in caption_scenes(config(stampscenes_config, 1), STAMPS_USED, SOUNDING):
        words = words_of(scene.stamps, LABELS, SPOKEN)
        held_out = {
            fill(template, words)
            for roles, phrasings in TEMPLATES.items()
            if roles <= words.keys()
            for template in phrasings["held_out"]
        }
        assert not held_out & set(captions(scene, LABELS, SPOKEN, 1))


SLOTS = {"seen": "a T-shirt", "sound": sound_text("an owl (barn)"), "speech": "un cucú"}
WORDS = {"seen": "a t - shirt", "heard": "an owl ( barn )", "said": "un cucú"}
"""As a tokenizer that sets punctuation apart gives them back."""


@pytest.mark.parametrize("template", CAPTION_TEMPLATES)
@pytest.mark.parametrize("wrong", ["seen", "heard", "said", None])
def test_a_caption_is_right_in_the_roles_in_which_it_names_the_right_thing(template: str, wrong: str | None) -> None:
    caption = template.format(**(WORDS if wrong is None else WORDS | {wrong: "a cow"}))
    role = {"seen": "seen", "heard": "sound", "said": "speech"}.get(wrong or "")
    assert caption_slots(caption, SLOTS) == {name: name != role for name in SLOTS}


def test_the_right_thing_in_another_role_is_wrong() -> None:
    swapped = {"seen": WORDS["heard"], "heard": WORDS["seen"], "said": WORDS["said"]}
    for template in CAPTION_TEMPLATES:
        assert caption_slots(template.format(**swapped), SLOTS) == {"seen": False, "sound": False, "speech": True}


BARE = {"{seen}", "{said}"}


@pytest.mark.parametrize(
    ("roles", "template"),
    [
        pytest.param(roles, template, id=template)
        for roles, phrasings in TEMPLATES.items()
        for template in (*phrasings["trained"], *phrasings["held_out"])
        if template not in BARE
    ],
)
def test_a_caption_is_right_in_what_it_says(roles: frozenset[str], template: str) -> None:
    names = {"seen": "seen", "sound": "heard", "speech": "said"}
    assert caption_slots(template.format(**WORDS), SLOTS) == {slot: role in roles for slot, role in names.items()}


@pytest.mark.parametrize("caption", ["", "a T-shirt an owl un cucú", "someone spots a t - shirt"])
def test_a_caption_in_other_words_names_nothing(caption: str) -> None:
    assert caption_slots(caption, SLOTS) == dict.fromkeys(SLOTS, False)


def test_the_corpus_own_captions_are_right(stampscenes_config: StampScenesConfig) -> None:
    for scene in caption_scenes(config(stampscenes_config, 1), STAMPS_USED, SOUNDING):
        if scene.soundtrack == "related":
            words = words_of(scene.stamps, LABELS, SPOKEN)
            right = {"seen": words["seen"], "sound": sound_text(words["heard"]), "speech": words["said"]}
            for caption in captions(scene, LABELS, SPOKEN, 1)[:8]:
                assert all(caption_slots(caption, right).values()), caption
