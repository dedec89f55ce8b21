"""Batches: a pure function of seed and step, whoever prepares them and however many share them."""

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clip4vla.batch import Batch
from clip4vla.clips.format import Clip
from clip4vla.clips.loader import (
    ClipStore,
    Order,
    TrainingBatches,
    View,
    _draw_texts,
    collate,
    training_loader,
)
from clip4vla.records import Text
from tests.clips.conftest import RATE


def tokenize(sentences: Sequence[str]) -> Tensor:
    return torch.tensor([[len(sentence), sum(sentence.encode())] for sentence in sentences])


VIEW = View(frames=2, image_size=32, max_samples=RATE // 2, tokenize=tokenize)


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


@pytest.fixture
def store(clips: Path) -> ClipStore:
    return ClipStore(sorted(clips.glob("*/train.lance")))


def order_of(store: ClipStore, seed: int = 3, weights: tuple[float, ...] | None = None, batch_size: int = 4) -> Order:
    return Order(store.sizes, weights, batch_size, epochs=3, seed=seed)


def batches(store: ClipStore, rank: int = 0, world_size: int = 1, **settings) -> TrainingBatches:
    return TrainingBatches(store, VIEW, order_of(store, **settings), rank, world_size)


def test_the_clips_of_all_corpora_are_taken_in_the_order_asked_for(store: ClipStore) -> None:
    assert store.sizes == (11, 5)
    assert len(store) == 16
    taken = store.take([15, 0, 11, 10, 0])
    assert [clip.clip_id for clip in taken] == ["train4", "train0", "train0", "train10", "train0"]
    assert taken[1].texts == taken[4].texts
    assert taken[1].audio is not None
    assert taken[2].audio is not None


@pytest.mark.parametrize("wrong", [[16], [-1], [3, 99]])
def test_a_clip_that_is_not_there_is_an_error(store: ClipStore, wrong: list[int]) -> None:
    with pytest.raises(IndexError, match="of 16 clips there is none at"):
        store.take(wrong)


def test_no_clips_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dvc repro clips"):
        ClipStore([tmp_path / "missing.lance"])
    with pytest.raises(ValueError, match="dvc repro clips"):
        ClipStore([])


def test_an_epoch_has_every_clip_once_but_the_last_odd_ones() -> None:
    order = Order((11, 6), None, batch_size=5, epochs=4, seed=0)
    assert (order.steps_per_epoch, order.steps) == (3, 12)
    epochs = [np.concatenate([order.indices(3 * epoch + i) for i in range(3)]) for epoch in range(4)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 15
        assert set(epoch.tolist()) <= set(range(17))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_is_a_function_of_seed_and_step_alone() -> None:
    one, same_, other = (Order((50, 7), None, 8, 2, seed) for seed in (1, 1, 2))
    backwards = [same_.indices(step).tolist() for step in reversed(range(one.steps))][::-1]
    assert [one.indices(step).tolist() for step in range(one.steps)] == backwards
    assert one.indices(0).tolist() != other.indices(0).tolist()


def test_weights_give_each_corpus_its_share() -> None:
    order = Order((100, 20, 30), (1.0, 3.0, 2.0), batch_size=10, epochs=1, seed=0)
    assert sum(order.quotas()) == 150
    drawn = np.concatenate([order.indices(step) for step in range(order.steps)])
    counts = [int(((drawn >= low) & (drawn < high)).sum()) for low, high in ((0, 100), (100, 120), (120, 150))]
    assert counts == order.quotas() == [25, 75, 50]
    assert len(set(drawn[drawn < 100].tolist())) == 25  # fewer than there are: none twice
    repeats = np.bincount(drawn[(drawn >= 100) & (drawn < 120)] - 100, minlength=20)
    assert set(repeats.tolist()) == {3, 4}  # more than there are: as often as any other, give or take one


def test_fewer_clips_than_a_batch_are_one_batch() -> None:
    order = Order((3,), None, batch_size=8, epochs=2, seed=0)
    assert (order.clips_per_step, order.steps) == (3, 2)
    assert sorted(order.indices(1).tolist()) == [0, 1, 2]


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_a_batch_and_draw_the_same_for_each_clip(store: ClipStore, world_size: int) -> None:
    whole = batches(store)[5]
    parts = [batches(store, rank, world_size)[5] for rank in range(world_size)]
    assert [len(part) for part in parts] == [4 // world_size] * world_size
    for rank, part in enumerate(parts):
        assert part.clip_ids == whole.clip_ids[rank::world_size]
        for name in ("frames", "video_mask", "samples", "tokens", "audio_types"):
            assert torch.equal(getattr(part, name), getattr(whole, name)[rank::world_size])
        channels = part.waveform.shape[1]  # two only where a clip of this rank is stereo
        assert torch.equal(part.waveform, whole.waveform[rank::world_size][:, :channels])


def test_a_run_that_resumes_goes_on_with_the_very_next_batch(store: ClipStore) -> None:
    steps = batches(store).order.steps
    whole = list(training_loader(batches(store), 0, workers=0))
    resumed = list(training_loader(batches(store), 7, workers=0))
    assert (len(whole), len(resumed)) == (steps, steps - 7)
    assert all(same(one, other) for one, other in zip(whole[7:], resumed, strict=True))
    assert not any(same(one, other) for one, other in pairwise(whole))


def test_workers_prepare_the_same_batches(store: ClipStore) -> None:
    alone = list(training_loader(batches(store), 4, workers=0))
    helped = list(training_loader(batches(store), 4, workers=1))
    assert len(alone) == len(helped) == 8
    assert all(same(one, other) for one, other in zip(alone, helped, strict=True))


def test_what_is_drawn_changes_from_epoch_to_epoch(store: ClipStore) -> None:
    found: dict[str, list[Tensor]] = {}
    texts = set()
    for batch in training_loader(batches(store, batch_size=16), 0, workers=0):
        for row, clip_id in enumerate(batch.clip_ids):
            found.setdefault(clip_id, []).append(batch.waveform[row])
            if clip_id == "train2":
                texts.add(tuple(batch.tokens[row, 0].tolist()))
    mono = found["train8"]
    assert len(mono) == 3
    assert not torch.equal(mono[0], mono[1])
    assert len(texts) > 1


@pytest.mark.parametrize("wanted", [1, 2, 4, 7])
def test_sentences_of_a_clip_are_of_one_type_and_each_as_often_as_any_other(wanted: int) -> None:
    texts = [Text("one", "verbal"), *[Text(word, "nonverbal") for word in ("two", "three", "four")]]
    rng = np.random.default_rng(0)
    draws = [_draw_texts(texts, wanted, rng) for _ in range(200)]
    for draw in draws:
        assert len(draw) == wanted
        alike = [text for text in texts if text.audio_type == draw[0].audio_type]
        counts = [draw.count(text) for text in alike]
        assert sum(counts) == wanted
        assert max(counts) - min(counts) <= 1
    firsts = Counter(draw[0].text for draw in draws)
    assert all(30 < firsts[text.text] < 70 for text in texts)


def test_a_batch_holds_the_sentences_that_the_view_asks_for(store: ClipStore) -> None:
    view = replace(VIEW, sentences=3)
    batch = TrainingBatches(store, view, order_of(store), 0, 1)[0]
    assert batch.tokens.shape == (4, 3, 2)
    for row, clip in enumerate(store.take(order_of(store).indices(0))):
        of_clip = {tuple(line) for line in tokenize([text.text for text in clip.texts]).tolist()}
        assert {tuple(line) for line in batch.tokens[row].tolist()} <= of_clip


def test_short_sentences_are_left_out_but_for_clips_that_have_no_others(store: ClipStore) -> None:
    every = {text for clip in store.take(range(len(store))) for text in clip.texts}
    longest = max(len(text.text.split()) for text in every)
    wanted = {len(text.text) for text in every if len(text.text.split()) == longest}
    for words, expected in ((longest, wanted), (99, {len(text.text) for text in every})):
        whole = TrainingBatches(
            store, replace(VIEW, min_words=words, sentences=4), order_of(store, batch_size=16), 0, 1
        )
        assert set(whole[0].tokens[:, :, 0].flatten().tolist()) <= expected


def test_all_sentences_are_read_without_the_rest(store: ClipStore) -> None:
    expected = [text.text for clip in store.take(range(len(store))) for text in clip.texts]
    assert list(store.sentences()) == expected


def clip_with(audio: np.ndarray | None, frames: int = 3) -> Clip:
    buffers = []
    for index in range(frames):
        buffer = io.BytesIO()
        Image.new("RGB", (40, 60), (60 * index, 100, 0)).save(buffer, "PNG")
        buffers.append(buffer.getvalue())
    return Clip("clip", tuple(buffers), audio, (Text("text"),))


def ramp(channels: int, samples: int) -> np.ndarray:
    return np.arange(channels * samples, dtype=np.int16).reshape(channels, samples)


def test_a_batch_mixes_clips_of_every_kind() -> None:
    samples = VIEW.max_samples
    clips = [
        clip_with(ramp(1, 100)),
        clip_with(ramp(2, samples + 20)),
        clip_with(None),
        clip_with(ramp(1, 50), frames=0),
        clip_with(None, frames=1),
    ]
    texts = [Text("a", "verbal"), Text("b", "nonverbal"), *[Text("c")] * 3]
    batch = collate(clips, [[text] for text in texts], VIEW, None)
    assert batch.waveform.shape == (5, 2, samples)
    assert batch.frames.shape == (5, 2, 3, 32, 32)
    assert batch.samples.tolist() == [100, samples, 0, 50, 0]
    assert batch.video_mask.tolist() == [[True, True]] * 3 + [[False, False], [True, False]]
    assert batch.audio_types.tolist() == [0, 1, -1, -1, -1]
    # mono is both channels; the middle of a longer sound is kept; nothing after the end, nothing without a track
    assert torch.equal(batch.waveform[0, 0], batch.waveform[0, 1])
    assert batch.waveform[0, 0, :100].mul(32768).tolist() == list(range(100))
    assert batch.waveform[1, :, 0].mul(32768).tolist() == [10, samples + 30]
    assert not batch.waveform[0, :, 100:].any()
    assert not batch.waveform[2].any()
    assert not batch.frames[3].any()
    # two of three frames: the middles of the two halves
    assert batch.frames[0, :, 0, 5, 5].tolist() == [0, 120]
    assert batch.frames[4, 0, 1, 5, 5] == 100


def test_a_batch_of_mono_clips_has_one_channel() -> None:
    batch = collate([clip_with(ramp(1, 10)), clip_with(None)], [[Text("a")]] * 2, VIEW, None)
    assert batch.waveform.shape[1] == 1
    assert collate([clip_with(None)], [[Text("a")]], VIEW, None).waveform.shape[1] == 1


def test_crops_and_windows_stay_inside() -> None:
    clips = [clip_with(ramp(2, VIEW.max_samples + 7))] * 30
    rngs = [np.random.default_rng(index) for index in range(30)]
    batch = collate(clips, [[Text("a")]] * 30, VIEW, rngs)
    starts = batch.waveform[:, 0, 0].mul(32768).int()
    assert set(starts.tolist()) == set(range(8))
    assert batch.samples.tolist() == [VIEW.max_samples] * 30
    assert (batch.frames[:, :, 1] == 100).all()


def test_a_stored_frame_that_is_too_small_says_what_to_raise() -> None:
    with pytest.raises(ValueError, match=r"raise clips\.size"):
        collate([clip_with(None)], [[Text("a")]], View(2, 64, 10, tokenize), None)
