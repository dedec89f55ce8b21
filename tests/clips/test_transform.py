"""Clips of every kind become one batch: frames, masks, sound and texts, in the middle or drawn at random."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from clip4vla.clips.batch import Batch
from clip4vla.clips.format import Clip
from clip4vla.clips.transform import ClipTransform, collate
from clip4vla.config import AugmentationConfig
from clip4vla.records import Text
from tests.clips.conftest import TRANSFORM, tokenize


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
    samples = TRANSFORM.max_samples
    clips = [
        clip_with(ramp(1, 100)),
        clip_with(ramp(2, samples + 20)),
        clip_with(None),
        clip_with(ramp(1, 50), frames=0),
        clip_with(None, frames=1),
    ]
    texts = [Text("a", "verbal"), Text("b", "nonverbal"), *[Text("c")] * 3]
    batch = collate(clips, [[text] for text in texts], TRANSFORM, None)
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
    batch = collate([clip_with(ramp(1, 10)), clip_with(None)], [[Text("a")]] * 2, TRANSFORM, None)
    assert batch.waveform.shape[1] == 1
    assert collate([clip_with(None)], [[Text("a")]], TRANSFORM, None).waveform.shape[1] == 1


def test_crops_and_windows_stay_inside() -> None:
    clips = [clip_with(ramp(2, TRANSFORM.max_samples + 7))] * 30
    rngs = [np.random.default_rng(index) for index in range(30)]
    batch = collate(clips, [[Text("a")]] * 30, TRANSFORM, rngs)
    starts = batch.waveform[:, 0, 0].mul(32768).int()
    assert set(starts.tolist()) == set(range(8))
    assert batch.samples.tolist() == [TRANSFORM.max_samples] * 30
    assert (batch.frames[:, :, 1] == 100).all()


def test_training_reads_changed_sounds_and_frames_and_inference_those_that_are_stored() -> None:
    changing = replace(TRANSFORM, augmentation=AugmentationConfig(speed=0.3, gain=6.0, mirror=0.5, colour=0.3))
    clips, texts = [clip_with(ramp(1, 9000)), clip_with(ramp(1, 400)), clip_with(None)] * 4, [[Text("a")]] * 12

    def read(transform: ClipTransform, in_training: bool) -> Batch:
        return collate(
            clips, texts, transform, [np.random.default_rng(row) for row in range(12)] if in_training else None
        )

    trained, again, off = read(changing, True), read(changing, True), read(TRANSFORM, True)
    for batch in (again, off):
        assert (
            torch.equal(trained.waveform, batch.waveform)
            is torch.equal(trained.frames, batch.frames)
            is (batch is again)
        )
    assert 400 not in trained.samples.tolist()
    assert 270 < min(size for size in trained.samples.tolist() if size) <= max(trained.samples) == TRANSFORM.max_samples
    assert (trained.samples == 0).sum() == 4  # a clip without sound stays without
    one, other = read(changing, False), read(TRANSFORM, False)
    assert torch.equal(one.waveform, other.waveform)
    assert torch.equal(one.frames, other.frames)


def test_a_stored_frame_smaller_than_the_tower_is_an_error_that_names_the_setting() -> None:
    with pytest.raises(ValueError, match=r"raise clips\.size"):
        collate([clip_with(None)], [[Text("a")]], ClipTransform(2, 64, 10, tokenize), None)
