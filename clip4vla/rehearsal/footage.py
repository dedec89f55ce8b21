"""Videos and sounds that nobody recorded: patterns that move, and noise, at any size and length.

They cost about as much to decode as recordings of that size, and their frames as many bytes.
"""

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip4vla.media.encode import encode

SAMPLE_RATE = 44_100
BLOCK, GRAIN = 8, 16
"""Pixels of a patch of one colour, and levels of the noise over it."""
LOUDNESS = 0.1


def write_video(path: Path, seconds: float, width: int, height: int, fps: int, seed: int) -> None:
    """Write an .mp4 (H.264, AAC) of `seconds`, in which a pattern scrolls and there is noise to hear."""
    rng = np.random.default_rng(seed)
    encode(path, _scroll(rng, round(seconds * fps), width, height), fps, _noise(rng, seconds), SAMPLE_RATE)


def write_sound(path: Path, seconds: float, seed: int) -> None:
    """Write a .wav of `seconds` of noise, 16 bits, one channel."""
    samples = _noise(np.random.default_rng(seed), seconds)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLE_RATE)
        file.writeframes((samples * np.iinfo(np.int16).max).clip(-32768, 32767).astype("<i2").tobytes())


def _scroll(rng: np.random.Generator, count: int, width: int, height: int) -> NDArray[np.uint8]:
    """(`count`, `height`, `width`, 3) frames: views of one tall picture, a row further down each."""
    tall = height + count
    blocks = rng.integers(0, 256 - GRAIN, (-(-tall // BLOCK), -(-width // BLOCK), 3), np.uint8)
    picture = blocks.repeat(BLOCK, 0).repeat(BLOCK, 1)[:tall, :width]
    picture = picture + rng.integers(0, GRAIN, (tall, width, 1), np.uint8)
    windows = np.lib.stride_tricks.sliding_window_view(picture, height, axis=0)[:count]
    return windows.transpose(0, 3, 1, 2)


def _noise(rng: np.random.Generator, seconds: float) -> NDArray[np.float32]:
    return (LOUDNESS * rng.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)
