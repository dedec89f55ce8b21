"""Training batches: a pure function of seed and step, on any number of ranks, with any number of workers."""

from collections import Counter
from dataclasses import fields, replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from clip4vla.clips.batch import Batch
from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.loader import TrainingBatches, _draw_texts, training_loader
from clip4vla.clips.sampler import StepSampler
from clip4vla.records import Text
from tests.clips.conftest import TRANSFORM, tokenize


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
