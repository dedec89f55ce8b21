"""Captions of a split from each modality, and their scores: the field's metrics and slot accuracies."""

from pathlib import Path

import pytest

from benchmarks.clips import write_clips
from clip4vla.clips.dataset import ClipDataset
from clip4vla.config import CaptioningConfig, EvaluationConfig, InferenceConfig
from clip4vla.evaluation.caption_evaluator import CaptionEvaluator, Captions, Slots, score_captions
from clip4vla.evaluation.caption_metrics import SIMPLE
from clip4vla.evaluation.labels import Labels
from clip4vla.evaluation.scores import Scores, SplitSize
from clip4vla.inference.embedder import Embedder
from clip4vla.records import MODALITIES, Modality
from tests.inference.tiny import CAPTIONING, CLIPS, INFERENCE, SENTENCES, tiny_model

EVALUATION = EvaluationConfig(bootstrap=100)
COUNT = 5


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ClipDataset:
    return ClipDataset([write_clips(tmp_path_factory.mktemp("clips") / "test.lance", COUNT)])


def evaluator(modalities: Modality = "both", batch_size: int = COUNT) -> CaptionEvaluator:
    training = CaptioningConfig(**CAPTIONING.model_dump() | {"modalities": modalities})
    embedder = Embedder(tiny_model(captioning=True), InferenceConfig.of(CLIPS, training))
    return CaptionEvaluator(embedder, EvaluationConfig(batch_size=batch_size))


def test_every_clip_is_captioned_from_each_modality_whatever_the_batch(dataset: ClipDataset) -> None:
    found = [evaluator(batch_size=size).caption(dataset) for size in (2, COUNT)]
    assert found[0] == found[1]
    assert found[0].generated.keys() == set(MODALITIES)
    for generated in found[0].generated.values():
        assert generated.keys() == {f"clip{index}" for index in range(COUNT)}
        assert set("".join(generated.values())) <= set(" ".join(SENTENCES))
    assert found[0].references["clip3"] == ("word3 there", "a thing 3")
    assert len({tuple(generated.values()) for generated in found[0].generated.values()}) > 1


def test_a_clip_without_sound_is_captioned_from_its_video(dataset: ClipDataset) -> None:
    generated = evaluator().caption(dataset).generated
    assert generated["both"]["clip0"] == generated["video"]["clip0"]


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_a_model_of_one_modality_captions_from_that_one(dataset: ClipDataset, modality: Modality) -> None:
    assert evaluator(modality).modalities == (modality,)
    alone = evaluator(modality).caption(dataset).generated
    assert alone == {modality: evaluator().caption(dataset).generated[modality]}


def test_captions_from_both_are_those_of_the_public_api(dataset: ClipDataset) -> None:
    one = evaluator()
    captions = one.embedder.caption_clips(dataset.take(range(COUNT)))
    assert [*one.caption(dataset).generated["both"].values()] == captions


def test_a_model_without_a_caption_decoder_is_refused() -> None:
    with pytest.raises(ValueError, match="this model has no caption decoder: fine-tune it for captioning first"):
        CaptionEvaluator(Embedder(tiny_model(), INFERENCE), EVALUATION)


def captions(content: str = "x", with_sound: frozenset[str] = frozenset()) -> Captions:
    references = {"one": ("a dog barks", "the dog barks loudly"), "two": ("a cat sleeps",), "three": ("a cow sings",)}
    good = {"one": "a dog barks", "two": "a cat sleeps", "three": "a cat sleeps"}
    return Captions(references, {"both": good, "video": dict.fromkeys(references, "a cat sleeps")}, content, with_sound)


RIGHT = {"one": {"seen": "dog", "sound": "bark"}, "two": {"seen": "cat"}, "elsewhere": {"seen": "cow"}}
LABELS = Labels({"sound": ("bark",)}, RIGHT)
SLOTS = Slots(LABELS, lambda caption, right: {role: text in caption for role, text in right.items()})


def test_scores_are_named_by_modality_and_metric_with_intervals_of_what_is_a_mean_over_clips() -> None:
    scores = score_captions(captions(), SLOTS, EVALUATION, java=False)
    assert scores.values["caption/both/slot/seen"] == 100
    assert scores.values["caption/video/slot/seen"] == 50
    assert scores.values["caption/video/slot/sound"] == 0
    assert scores.values["caption/both/CIDEr"] > scores.values["caption/video/CIDEr"]
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
    assert not [name for name in score_captions(captions(), None, EVALUATION, java=False).values if "slot" in name]


def test_other_clips_or_another_tokenization_are_another_test_set(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (score_captions(captions(content), None, EVALUATION, java=False) for content in ("x", "y"))
    assert one.test_set == score_captions(captions(), SLOTS, EVALUATION, java=False).test_set != other.test_set
    monkeypatch.setattr("clip4vla.evaluation.caption_metrics.SIMPLE", "another")
    assert score_captions(captions(), None, EVALUATION, java=False).test_set != one.test_set


def test_scores_survive_the_disk(tmp_path: Path) -> None:
    scores = score_captions(captions(), SLOTS, EVALUATION, java=False)
    scores.write(tmp_path)
    again = Scores.read(tmp_path)
    assert (again.test_set, again.values, again.intervals, again.notes) == (
        *(scores.test_set, scores.values, scores.intervals, scores.notes),
    )
    assert again.samples.keys() == scores.samples.keys()
    for name, samples in scores.samples.items():
        assert again.samples[name].clip_ids == samples.clip_ids
        assert again.samples[name].values.tolist() == samples.values.tolist()


def test_captions_of_clips_with_sound_are_scored_as_if_there_were_no_others() -> None:
    all_of_them = score_captions(captions(with_sound=frozenset({"one", "three"})), None, EVALUATION, java=False)
    assert all_of_them.size == SplitSize(3, 2)
    found = captions()
    kept = ("one", "three")
    references = {clip: found.references[clip] for clip in kept}
    generated = {modality: {clip: each[clip] for clip in kept} for modality, each in found.generated.items()}
    alone = score_captions(Captions(references, generated, "x", frozenset(kept)), None, EVALUATION, java=False)
    for name, value in alone.values.items():
        assert all_of_them.values[f"with_sound/{name}"] == value
    assert not any(name.startswith("with_sound/") for name in alone.values)
    without = score_captions(captions(), None, EVALUATION, java=False)
    assert without.values == {n: v for n, v in all_of_them.values.items() if not n.startswith("with_sound/")}
    assert without.test_set == all_of_them.test_set
