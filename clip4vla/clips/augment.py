"""What a training changes in a clip each time it reads it, so that a model learns what is said and shown, not the
recording: waveforms in another speed, timbre, level and noise, pictures mirrored, cut and in other colours.

In: a window of sound, or the frames of a clip, and a random generator. Out: the same, changed. A change whose setting
is 0 draws nothing, so that without augmentation a training is the same as ever.

Shapes: C channels, S samples, F frames of H x W pixels.
"""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip4vla.config import AugmentationConfig


def augment_sound(
    wave: NDArray[np.float32], config: AugmentationConfig, rng: np.random.Generator
) -> NDArray[np.float32]:
    """A changed copy of `wave` (C, S) in -1..1: (C, T), where T differs from S by at most `config.speed`."""
    if config.speed:
        wave = _resampled(wave, rng.uniform(1 - config.speed, 1 + config.speed))
    if config.tilt:
        wave = _tilted(wave, rng.uniform(-config.tilt, config.tilt))
    if config.noise is not None:
        wave = _noisy(wave, rng.uniform(*config.noise), rng)
    if config.gain:
        wave = wave * np.float32(10 ** (rng.uniform(-config.gain, config.gain) / 20))
    return np.clip(wave, -1, 1)


def _resampled(wave: NDArray[np.float32], speed: float) -> NDArray[np.float32]:
    """`wave` played `speed` times as fast: pitch, formants and tempo change together, as from speaker to speaker."""
    length = wave.shape[1]
    places = np.arange(max(1, round(length / speed))) * speed
    return np.stack([np.interp(places, np.arange(length), channel) for channel in wave]).astype(np.float32)


def _tilted(wave: NDArray[np.float32], slope: float) -> NDArray[np.float32]:
    """Duller (`slope` > 0) or brighter (< 0), by a filter of two taps, at the root mean square of before."""
    filtered = wave.copy()
    filtered[:, 1:] += np.float32(slope) * wave[:, :-1]
    before, after = (float(np.sqrt(np.mean(np.square(each)))) for each in (wave, filtered))
    return filtered * np.float32(before / after) if after else filtered


def _noisy(wave: NDArray[np.float32], ratio_db: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """With white noise, `ratio_db` below the root mean square of `wave`."""
    level = np.sqrt(np.mean(np.square(wave))) * 10 ** (-ratio_db / 20)
    return wave + np.float32(level) * rng.standard_normal(wave.shape, dtype=np.float32)


def augment_frames(
    frames: NDArray[np.uint8], config: AugmentationConfig, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """A changed copy of `frames` (F, H, W, 3); all frames of a clip are changed alike."""
    if config.mirror and rng.uniform() < config.mirror:
        frames = frames[:, :, ::-1]
    if config.zoom:
        frames = _zoomed(frames, rng.uniform(0, config.zoom), rng.uniform(0, 1, 2))
    if config.grey and rng.uniform() < config.grey:
        frames = np.repeat(_luminance(frames).round().astype(np.uint8), 3, axis=3)
    if config.colour:
        frames = _recoloured(frames, rng.uniform(1 - config.colour, 1 + config.colour, 3))
    return np.ascontiguousarray(frames)


def _zoomed(frames: NDArray[np.uint8], share: float, corner: NDArray[np.float64]) -> NDArray[np.uint8]:
    """`frames` without a `share` of their height and width, at their size of before."""
    height, width = frames.shape[1:3]
    kept = (max(1, round(height * (1 - share))), max(1, round(width * (1 - share))))
    top, left = round(corner[0] * (height - kept[0])), round(corner[1] * (width - kept[1]))
    box = (left, top, left + kept[1], top + kept[0])
    resized = [Image.fromarray(frame).resize((width, height), Image.Resampling.BILINEAR, box) for frame in frames]
    return np.stack([np.asarray(frame) for frame in resized])


def _recoloured(frames: NDArray[np.uint8], factors: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Brightness, contrast and saturation multiplied by `factors`."""
    brightness, contrast, saturation = factors.astype(np.float32)
    values = frames.astype(np.float32) * brightness
    values = (values - values.mean()) * contrast + values.mean()
    grey = _luminance(values)
    return np.clip((values - grey) * saturation + grey, 0, 255).astype(np.uint8)


def _luminance(frames: NDArray[np.uint8] | NDArray[np.float32]) -> NDArray[np.float32]:
    """(F, H, W, 1), as ITU-R BT.601 weighs the colours."""
    return (frames.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
