"""What the clips of StampScenes show, whatever the seed: no leak between splits, no clip that gives itself away."""

from collections import Counter
from itertools import combinations

import pytest

from clip4vla.config import StampScenesConfig
from clip4vla.corpora.stampscenes.scenes import (
    CAPTION_TEMPLATES,
    PARTIAL_TEMPLATES,
    caption_scenes,
    caption_slots,
    captions,
    pretraining_scenes,
    pretraining_text,
    sound_text,
)

STAMPS_USED, SOUNDING = 30, 12
LABELS = [f"a stamp{index}" for index in range(STAMPS_USED)]
SPOKEN = [f"una cosa{index}" for index in range(STAMPS_USED)]


def config(stampscenes_config: StampScenesConfig, seed: int) -> StampScenesConfig:
    pairs = {"train": 150, "val": 30, "test": 60}
    changes = {
        "seed": seed,
        "pretraining_clips": 100,
        "caption_pairs": pairs,
        "pictures_per_pair": dict.fromkeys(pairs, 3),
    }
    return stampscenes_config.model_copy(update=changes)


@pytest.mark.parametrize("seed", range(5))
def test_no_pair_of_sound_and_word_is_in_two_splits(stampscenes_config: StampScenesConfig, seed: int) -> None:
    scenes = caption_scenes(config(stampscenes_config, seed), STAMPS_USED, SOUNDING)
    pairs = {
        split: {(s.heard, s.said) for s in scenes if s.split == split}
        for split in config(stampscenes_config, 0).caption_pairs
    }
    assert {split: len(found) for split, found in pairs.items()} == {"train": 150, "val": 30, "test": 60}
    for one, other in combinations(pairs.values(), 2):
        assert not one & other


@pytest.mark.parametrize("seed", range(5))
def test_the_three_stamps_of_a_caption_clip_differ(stampscenes_config: StampScenesConfig, seed: int) -> None:
    scenes = caption_scenes(config(stampscenes_config, seed), STAMPS_USED, SOUNDING)
    assert len(scenes) == 3 * 240
    assert all(len({s.seen, s.heard, s.said}) == 3 for s in scenes)
    assert all(s.heard < SOUNDING and max(s.seen, s.said) < STAMPS_USED for s in scenes)
    assert len({(s.seen, s.heard, s.said) for s in scenes}) == len(scenes)
    assert [s.clip_id for s in scenes] == [f"video{index}" for index in range(len(scenes))]


@pytest.mark.parametrize("seed", range(3))
def test_half_of_pretraining_is_narrated_half_is_sounding(stampscenes_config: StampScenesConfig, seed: int) -> None:
    scenes = pretraining_scenes(config(stampscenes_config, seed), STAMPS_USED, SOUNDING)
    assert Counter(s.leading for s in scenes) == {"verbal": 50, "nonverbal": 50}
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
    scenes = caption_scenes(config(stampscenes_config, 1), STAMPS_USED, SOUNDING)
    for scene in [s for split in ("train", "val", "test") for s in scenes if s.split == split][:50] + scenes[-10:]:
        sentences = captions(scene, LABELS, SPOKEN, 1)
        assert len(set(sentences)) == len(sentences) == (5 if scene.split == "train" else 3)
        seen, rest = LABELS[scene.seen], (LABELS[scene.heard], SPOKEN[scene.said])
        for sentence in sentences[:3]:
            assert all(word in sentence for word in (seen, *rest))
        for sentence in sentences[3:]:
            assert (seen in sentence) != all(word in sentence for word in rest)


def test_too_many_pairs_are_refused(stampscenes_config: StampScenesConfig) -> None:
    with pytest.raises(ValueError, match=r"asks for 240 pairs, but 8 stamps give"):
        caption_scenes(config(stampscenes_config, 1), 8, 4)


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


def test_a_partial_caption_is_right_in_what_it_says() -> None:
    seen, heard = (template.format(**WORDS) for template in PARTIAL_TEMPLATES)
    assert caption_slots(seen, SLOTS) == {"seen": True, "sound": False, "speech": False}
    assert caption_slots(heard, SLOTS) == {"seen": False, "sound": True, "speech": True}


@pytest.mark.parametrize("caption", ["", "a T-shirt an owl un cucú", "one sees a t - shirt"])
def test_a_caption_in_other_words_names_nothing(caption: str) -> None:
    assert caption_slots(caption, SLOTS) == dict.fromkeys(SLOTS, False)


def test_the_corpus_own_captions_are_right(stampscenes_config: StampScenesConfig) -> None:
    for scene in caption_scenes(config(stampscenes_config, 1), STAMPS_USED, SOUNDING):
        right = {"seen": LABELS[scene.seen], "sound": sound_text(LABELS[scene.heard]), "speech": SPOKEN[scene.said]}
        for caption in captions(scene, LABELS, SPOKEN, 1)[:3]:
            assert all(caption_slots(caption, right).values()), caption
