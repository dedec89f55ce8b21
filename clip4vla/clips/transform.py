"""What a model reads of a clip: which frames, which window of the waveform, which captions.

In: clips as stored, and the captions chosen for each. Out: one `Batch`. Shape legend: see `clip4vla.clips.batch`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip4vla.clips.augment import augment_frames, augment_sound
from clip4vla.clips.batch import AUDIO_TYPE_INDEX, Batch
from clip4vla.clips.format import Clip, decode_frame
from clip4vla.config import AugmentationConfig
from clip4vla.records import Text

Tokenize = Callable[[Sequence[str]], Tensor]
NO_AUGMENTATION = AugmentationConfig()


@dataclass(frozen=True)
class ClipTransform:
    """What of a clip a model reads."""

    frames: int
    image_size: int
    max_samples: int
    """Longest sound in samples; a longer one is cropped."""
    tokenize: Tokenize
    """Sentences to (B, L) int64; pickled to the workers."""
    captions_per_clip: int = 1
    """Captions of a clip in a training batch."""
    circular_shift: bool = False
    """Circularly shift each waveform by a random offset in training."""
    min_words: int = 0
    """Captions with fewer words are not drawn, unless a clip has no others."""
    shared_captions_per_clip: int = 0
    """Further captions of a clip in a training batch, of those that other clips have, too."""
    identical_captions_match: bool = False
    """Give captions ids, so that a caption can be right for several clips of a batch."""
    augmentation: AugmentationConfig = NO_AUGMENTATION
    """Random changes in training."""


def collate(
    clips: Sequence[Clip],
    texts: Sequence[Sequence[Text]],
    transform: ClipTransform,
    rngs: Sequence[np.random.Generator] | None,
) -> Batch:
    """Clips and K sentences each to a batch.

    Args:
        clips: B of them.
        texts: the sentences of each; the first one's audio type is the clip's.
        transform: what of a clip the model reads.
        rngs: draw the crops and frames of each clip; None takes the middle of everything.
    """
    drawn: Sequence[np.random.Generator | None] = rngs or [None] * len(clips)
    frames, video_mask = _stack_frames(clips, transform, drawn)
    waveform, samples = _stack_audio(clips, transform, drawn)
    return Batch(
        clip_ids=tuple(clip.clip_id for clip in clips),
        frames=frames,
        video_mask=video_mask,
        waveform=waveform,
        samples=samples,
        tokens=transform.tokenize([text.text for of_clip in texts for text in of_clip]).unflatten(0, (len(clips), -1)),
        audio_types=torch.tensor([AUDIO_TYPE_INDEX[of_clip[0].audio_type] for of_clip in texts]),
    )


def _stack_frames(
    clips: Sequence[Clip], transform: ClipTransform, rngs: Sequence[np.random.Generator | None]
) -> tuple[Tensor, Tensor]:
    """(B, F, 3, H, W) uint8 and (B, F) bool."""
    size = transform.image_size
    frames = np.zeros((len(clips), transform.frames, size, size, 3), np.uint8)
    mask = np.zeros((len(clips), transform.frames), bool)
    for row, (clip, rng) in enumerate(zip(clips, rngs, strict=True)):
        chosen = _choose(len(clip.frames), transform.frames, rng)
        corner = rng.uniform(0, 1, 2) if rng else np.array([0.5, 0.5])
        for place, index in enumerate(chosen):
            frames[row, place] = _crop(decode_frame(clip.frames[index]), size, corner)
            mask[row, place] = True
        if rng and chosen:
            frames[row, : len(chosen)] = augment_frames(frames[row, : len(chosen)], transform.augmentation, rng)
    return torch.from_numpy(frames).permute(0, 1, 4, 2, 3), torch.from_numpy(mask)


def _choose(stored: int, wanted: int, rng: np.random.Generator | None) -> list[int]:
    """Indices of `wanted` evenly spread frames of those stored: the middle of each share, or anywhere in it."""
    count = min(stored, wanted)
    share = stored / max(count, 1)
    places = rng.uniform(0, 1, count) if rng else np.full(count, 0.5)
    return [min(stored - 1, int((i + place) * share)) for i, place in enumerate(places)]


def _crop(frame: NDArray[np.uint8], size: int, corner: NDArray[np.float64]) -> NDArray[np.uint8]:
    room = np.array(frame.shape[:2]) - size
    if (room < 0).any():
        raise ValueError(f"a stored frame is {frame.shape[:2]}, smaller than the tower's {size}: raise clips.size")
    top, left = np.round(corner * room).astype(int)
    return frame[top : top + size, left : left + size]


def _stack_audio(
    clips: Sequence[Clip], transform: ClipTransform, rngs: Sequence[np.random.Generator | None]
) -> tuple[Tensor, Tensor]:
    """(B, C, S) float32 in -1..1 and (B,) int64; mono becomes two equal channels beside a stereo clip."""
    channels = max((clip.audio.shape[0] for clip in clips if clip.audio is not None), default=1)
    waveform = np.zeros((len(clips), channels, transform.max_samples), np.float32)
    samples = np.zeros(len(clips), np.int64)
    for row, (clip, rng) in enumerate(zip(clips, rngs, strict=True)):
        if clip.audio is not None:
            piece = _window(clip.audio, transform.max_samples, rng)
            if rng and transform.circular_shift:
                piece = np.roll(piece, rng.integers(max(1, piece.shape[1])), axis=1)
            wave = piece.astype(np.float32) / np.float32(32768)
            if rng:
                wave = augment_sound(wave, transform.augmentation, rng)[:, : transform.max_samples]
            samples[row] = wave.shape[1]
            waveform[row, :, : wave.shape[1]] = wave
    return torch.from_numpy(waveform), torch.from_numpy(samples)


def _window(audio: NDArray[np.int16], longest: int, rng: np.random.Generator | None) -> NDArray[np.int16]:
    room = max(0, audio.shape[1] - longest)
    start = int(rng.integers(room + 1)) if rng else room // 2
    return audio[:, start : start + longest]
