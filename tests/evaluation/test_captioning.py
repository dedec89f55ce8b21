"""What a captioning model is told to write, and how it is scored."""

from pathlib import Path

import pytest
import torch

from benchmarks.clips import write_clips
from clip4vla.clips.loader import ClipStore
from clip4vla.evaluation.caption_metrics import SIMPLE
from clip4vla.evaluation.captioning import Captioner, Captions, Slots, score_captions
from clip4vla.evaluation.scores import Scores
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.text import Tokenizer
from clip4vla.model.towers import find_architecture
from clip4vla.params import load_params
from clip4vla.records import MODALITIES
from tests.project import REPOSITORY

PARAMS = load_params(REPOSITORY / "params.yaml")
EVALUATE = PARAMS.evaluate.model_copy(update={"bootstrap": 100})
CLIPS = 5
SENTENCES = ["a picture of a dog", "the sound of a cat"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return ClipStore([write_clips(tmp_path_factory.mktemp("clips") / "test.lance", CLIPS)])


@pytest.fixture(scope="module")
def model() -> Clip4Vla:
    torch.manual_seed(0)
    vocabulary = Tokenizer("stamp-small", 12).vocabulary(SENTENCES)
    model = Clip4Vla(PARAMS.model, PARAMS.audio, find_architecture("stamp-small", None), vocabulary).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter.copy_(0.3 * torch.randn_like(parameter))
    return model


def captioner(model: Clip4Vla, **changes: object) -> Captioner:
    training = PARAMS.caption.model_copy(update={"words": 12} | changes)
    return Captioner(model, training, PARAMS.evaluate.search)


def test_every_clip_is_captioned_by_each_modality_whatever_the_batch(model: Clip4Vla, store: ClipStore) -> None:
    written = [captioner(model).caption(store, "both", size) for size in (2, CLIPS)]
    assert written[0] == written[1]
    assert written[0].written.keys() == set(MODALITIES)
    for captions in written[0].written.values():
        assert captions.keys() == {f"clip{index}" for index in range(CLIPS)}
    assert written[0].references["clip3"] == ("word3 there", "a thing 3")
    words = set(" ".join(SENTENCES).split())
    assert {word for captions in written[0].written.values() for c in captions.values() for word in c.split()} <= words


def test_a_clip_without_a_sound_is_captioned_by_what_is_seen(model: Clip4Vla, store: ClipStore) -> None:
    written = captioner(model).caption(store, "both", CLIPS).written
    assert written["both"]["clip0"] == written["vision"]["clip0"]


@pytest.mark.parametrize("modality", ["vision", "audio"])
def test_a_model_of_one_modality_is_tested_with_that_one(model: Clip4Vla, store: ClipStore, modality: str) -> None:
    alone = captioner(model, modalities=modality).caption(store, "both", CLIPS).written
    assert alone == {modality: captioner(model).caption(store, "both", CLIPS).written[modality]}


def captions(content: str = "x") -> Captions:
    references = {"one": ("a dog barks", "the dog barks loudly"), "two": ("a cat sleeps",), "three": ("a cow sings",)}
    good = {"one": "a dog barks", "two": "a cat sleeps", "three": "a cat sleeps"}
    return Captions(references, {"both": good, "vision": dict.fromkeys(references, "a cat sleeps")}, content)


RIGHT = {"one": {"seen": "dog", "sound": "bark"}, "two": {"seen": "cat"}, "elsewhere": {"seen": "cow"}}
SLOTS = Slots(RIGHT, lambda caption, right: {role: text in caption for role, text in right.items()})


def test_scores_are_named_by_modality_and_metric_with_intervals_of_what_is_a_mean_over_clips() -> None:
    scores = score_captions(captions(), SLOTS, EVALUATE, java=False)
    assert scores.values["caption/both/slot/seen"] == 100
    assert scores.values["caption/vision/slot/seen"] == 50
    assert scores.values["caption/vision/slot/sound"] == 0
    assert scores.values["caption/both/CIDEr"] > scores.values["caption/vision/CIDEr"]
    assert scores.samples["caption/both/slot/seen"].clip_ids == ("one", "two")
    assert scores.samples["caption/both/CIDEr"].clip_ids == ("one", "two", "three")
    for name in scores.samples:
        low, high = scores.intervals[name]
        assert low <= scores.values[name] <= high
    assert "caption/both/BLEU-4" not in scores.intervals
    assert scores.notes["tokenizer"] == SIMPLE
    assert scores.notes["METEOR"].startswith("left out")
    assert scores.tree()["caption"]["both"]["slot"]["seen"] == 100


def test_without_labels_there_are_no_slots() -> None:
    assert not [name for name in score_captions(captions(), None, EVALUATE, java=False).values if "slot" in name]


def test_other_pictures_or_another_tokenization_are_another_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (score_captions(captions(content), None, EVALUATE, java=False) for content in ("x", "y"))
    assert one.test_set == score_captions(captions(), SLOTS, EVALUATE, java=False).test_set != other.test_set
    monkeypatch.setattr("clip4vla.evaluation.caption_metrics.SIMPLE", "another")
    assert score_captions(captions(), None, EVALUATE, java=False).test_set != one.test_set


def test_they_survive_the_disk(tmp_path: Path) -> None:
    scores = score_captions(captions(), SLOTS, EVALUATE, java=False)
    scores.write(tmp_path)
    again = Scores.read(tmp_path)
    assert (again.test_set, again.values, again.intervals, again.notes) == (
        *(scores.test_set, scores.values, scores.intervals, scores.notes),
    )
    assert again.samples.keys() == scores.samples.keys()
    for name, samples in scores.samples.items():
        assert again.samples[name].clip_ids == samples.clip_ids
        assert again.samples[name].values.tolist() == samples.values.tolist()
