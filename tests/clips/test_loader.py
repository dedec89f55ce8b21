"""Training batches: a pure function of seed and step, on any number of ranks, with any number of workers."""

from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clip4vla.clips.batch import NO_ID, Batch
from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.loader import TrainingBatches, _draw_texts, caption_id, training_loader
from clip4vla.clips.sampler import StepSampler
from clip4vla.clips.transform import ClipTransform
from clip4vla.records import Text
from tests.clips.conftest import ONLY_OWN, ONLY_SHARED, TRANSFORM, WITH_BOTH, tokenize


def same(one: Batch, other: Batch) -> bool:
    pairs = [(getattr(one, f.name), getattr(other, f.name)) for f in fields(Batch)]
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def sampler_of(
    dataset: ClipDataset, seed: int = 3, weights: tuple[float, ...] | None = None, batch_size: int = 4
) -> StepSampler:
    return StepSampler(dataset.sizes, weights, batch_size, epochs=3, seed=seed)


def batches(dataset: ClipDataset, rank: int = 0, world_size: int = 1, **settings) -> TrainingBatches:
    return TrainingBatches(dataset, TRANSFORM, sampler_of(dataset, **settings), rank, world_size)


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_share_a_batch_and_draw_the_same_for_each_clip(dataset: ClipDataset, world_size: int) -> None:
    complete = batches(dataset)[5]
    parts = [batches(dataset, rank, world_size)[5] for rank in range(world_size)]
    assert [len(part) for part in parts] == [4 // world_size] * world_size
    for rank, part in enumerate(parts):
        assert part.clip_ids == complete.clip_ids[rank::world_size]
        for name in ("frames", "video_mask", "samples", "tokens", "audio_types"):
            assert torch.equal(getattr(part, name), getattr(complete, name)[rank::world_size])
        channels = part.waveform.shape[1]  # two only where a clip of this rank is stereo
        assert torch.equal(part.waveform, complete.waveform[rank::world_size][:, :channels])


def test_a_resumed_loader_continues_with_the_next_batch(dataset: ClipDataset) -> None:
    steps = batches(dataset).sampler.steps
    complete = list(training_loader(batches(dataset), 0, workers=0))
    resumed = list(training_loader(batches(dataset), 7, workers=0))
    assert (len(complete), len(resumed)) == (steps, steps - 7)
    assert all(same(one, other) for one, other in zip(complete[7:], resumed, strict=True))
    assert not any(same(one, other) for one, other in pairwise(complete))


def test_workers_prepare_the_same_batches(dataset: ClipDataset) -> None:
    inline = list(training_loader(batches(dataset), 4, workers=0))
    by_worker = list(training_loader(batches(dataset), 4, workers=1))
    assert len(inline) == len(by_worker) == 8
    assert all(same(one, other) for one, other in zip(inline, by_worker, strict=True))


def test_what_is_drawn_changes_from_epoch_to_epoch(dataset: ClipDataset) -> None:
    found: dict[str, list[Tensor]] = {}
    texts = set()
    for batch in training_loader(batches(dataset, batch_size=16), 0, workers=0):
        for row, clip_id in enumerate(batch.clip_ids):
            found.setdefault(clip_id, []).append(batch.waveform[row])
            if clip_id == "train2":
                texts.add(tuple(batch.tokens[row, 0].tolist()))
    mono = found["train8"]
    assert len(mono) == 3
    assert not torch.equal(mono[0], mono[1])
    assert len(texts) > 1


@pytest.mark.parametrize("wanted", [1, 2, 4, 7])
def test_captions_of_a_clip_are_of_one_type_and_drawn_equally_often(wanted: int) -> None:
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


def test_a_batch_has_the_configured_number_of_captions_per_clip(dataset: ClipDataset) -> None:
    transform = replace(TRANSFORM, captions_per_clip=3)
    batch = TrainingBatches(dataset, transform, sampler_of(dataset), 0, 1)[0]
    assert batch.tokens.shape == (4, 3, 2)
    for row, clip in enumerate(dataset.take(sampler_of(dataset).indices(0))):
        of_clip = {tuple(line) for line in tokenize([text.text for text in clip.texts]).tolist()}
        assert {tuple(line) for line in batch.tokens[row].tolist()} <= of_clip


def test_short_captions_are_left_out_unless_a_clip_has_no_others(dataset: ClipDataset) -> None:
    every = {text for clip in dataset.take(range(len(dataset))) for text in clip.texts}
    longest = max(len(text.text.split()) for text in every)
    wanted = {len(text.text) for text in every if len(text.text.split()) == longest}
    for words, expected in ((longest, wanted), (99, {len(text.text) for text in every})):
        drawn = TrainingBatches(
            dataset, replace(TRANSFORM, min_words=words, captions_per_clip=4), sampler_of(dataset, batch_size=16), 0, 1
        )
        assert set(drawn[0].tokens[:, :, 0].flatten().tolist()) <= expected


SHARED = replace(TRANSFORM, captions_per_clip=3, shared_captions_per_clip=2, identical_captions_match=True)


def all_clips(sharing: Path, transform: ClipTransform = SHARED, rank: int = 0, world_size: int = 1) -> TrainingBatches:
    """Batches of all eight clips of `sharing`."""
    dataset = ClipDataset([sharing])
    return TrainingBatches(dataset, transform, sampler_of(dataset, batch_size=8), rank, world_size)


def by_clip(batches: TrainingBatches, step: int) -> dict[int, tuple[list[str], Batch]]:
    """The captions of each clip of a step, found by their ids, and the clip's row of the batch."""
    batch = batches[step]
    clips = {clip.clip_id: clip for clip in batches.dataset.take(range(8))}
    found = {}
    for row, clip_id in enumerate(batch.clip_ids):
        texts = {caption_id(text.text): text.text for text in clips[clip_id].texts}
        drawn = [texts[identity] for identity in batch.text_ids[row].tolist()]
        found[int(clip_id.removeprefix("train"))] = (drawn, batch[row : row + 1])
    return found


def test_own_captions_are_drawn_and_then_shared_ones(sharing: Path) -> None:
    for step in range(3):
        found = by_clip(all_clips(sharing), step)
        for index in WITH_BOTH:
            drawn, row = found[index]
            assert sorted(drawn[:3]) == [f"only clip {index} has sentence {t}" for t in range(3)]
            assert sorted(drawn[3:]) == sorted(f"bell {number % 4}" for number in (index, index + 1))
            assert row.shared.tolist() == [[False, False, False, True, True]]


def test_a_clip_without_captions_of_a_sort_has_those_of_the_other(sharing: Path) -> None:
    found = by_clip(all_clips(sharing), 0)
    for index, is_shared in [*((index, False) for index in ONLY_OWN), *((index, True) for index in ONLY_SHARED)]:
        drawn, row = found[index]
        assert row.shared.tolist() == [[is_shared] * 5]
        assert all(text.startswith("bell") is is_shared for text in drawn)


def test_tokens_are_those_of_the_captions_with_the_ids(sharing: Path) -> None:
    for drawn, row in by_clip(all_clips(sharing), 1).values():
        assert torch.equal(row.tokens[0], tokenize(drawn))


def test_captions_have_an_id_and_clips_those_of_all_their_captions(sharing: Path) -> None:
    batches = all_clips(sharing)
    batch = batches[0]
    clips = {clip.clip_id: clip for clip in batches.dataset.take(range(8))}
    assert batch.text_ids.dtype == batch.clip_text_ids.dtype == torch.int64
    assert batch.clip_text_ids.shape == (8, 5)
    for clip_id, ids in zip(batch.clip_ids, batch.clip_text_ids.tolist(), strict=True):
        captions = {text.text for text in clips[clip_id].texts}
        assert set(ids) - {NO_ID} == {caption_id(caption) for caption in captions}
        assert ids.count(NO_ID) == 5 - len(captions)


def test_ids_are_equal_for_equal_captions_alone_and_never_the_padding() -> None:
    captions = [f"caption {index}" for index in range(1000)]
    ids = {caption_id(caption) for caption in captions}
    assert len(ids) == len(captions)
    assert NO_ID not in ids
    assert caption_id("a bell rings") == 3984993988276850664  # in every process


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_captions_and_ids(sharing: Path, world_size: int) -> None:
    for step in range(3):
        complete = all_clips(sharing)[step]
        for rank in range(world_size):
            part, rows = all_clips(sharing, rank=rank, world_size=world_size)[step], slice(rank, None, world_size)
            assert part.clip_ids == complete.clip_ids[rows]
            for name in ("tokens", "text_ids", "shared"):
                assert torch.equal(getattr(part, name), getattr(complete, name)[rows])
            width = part.clip_text_ids.shape[1]  # of the clip of this rank that has the most
            assert torch.equal(part.clip_text_ids, complete.clip_text_ids[rows][:, :width])
            assert (complete.clip_text_ids[rows][:, width:] == NO_ID).all()


def test_workers_give_the_same_ids_and_sorts(sharing: Path) -> None:
    inline = list(training_loader(all_clips(sharing), 0, workers=0))
    by_worker = list(training_loader(all_clips(sharing), 0, workers=1))
    assert len(inline) == len(by_worker) == 3
    assert all(same(one, other) for one, other in zip(inline, by_worker, strict=True))


def test_without_shared_captions_of_their_own_all_are_drawn_alike(sharing: Path) -> None:
    alike = replace(SHARED, captions_per_clip=5, shared_captions_per_clip=0)
    batch = all_clips(sharing, alike)[0]
    assert batch.shared is None
    assert batch.text_ids is not None
    drawn, _ = by_clip(all_clips(sharing, alike), 0)[0]
    assert len(set(drawn)) == 5


def test_captions_have_no_ids_unless_identical_ones_match(sharing: Path) -> None:
    batch = all_clips(sharing, replace(SHARED, identical_captions_match=False))[0]
    assert batch.text_ids is batch.clip_text_ids is batch.shared is None
    assert batch.tokens.shape[1] == 5


def test_a_part_of_a_batch_and_a_batch_elsewhere_keep_the_ids(sharing: Path) -> None:
    batch = all_clips(sharing)[0]
    part, elsewhere = batch[2:5], batch.to(torch.device("meta"))
    for name in ("text_ids", "clip_text_ids", "shared"):
        assert torch.equal(getattr(part, name), getattr(batch, name)[2:5])
        assert getattr(elsewhere, name).shape == getattr(batch, name).shape
        assert getattr(elsewhere, name).device.type == "meta"
    plain = batches(ClipDataset([sharing]))[0]
    assert plain[:2].text_ids is plain.to(torch.device("meta")).text_ids is None
