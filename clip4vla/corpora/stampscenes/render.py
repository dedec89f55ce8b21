"""A scene in, moving pictures and sound out: pure numpy, seeded."""

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip4vla.config import StampScenesConfig
from clip4vla.corpora.stampscenes.scenes import Scene
from clip4vla.corpora.stampscenes.stamps import Stamp

LEVEL = 0.1
"""Root mean square of the leading sound, of full scale."""
BACKGROUND = (170, 255)
"""Range of the colours behind a picture: light, as paper is."""
EFFECT_GAP_S, VOICE_GAP_S = 0.15, 0.3
"""Pause between repetitions of a sound effect and of a voice that are shorter than the clip."""


def render_frames(stamp: Stamp, config: StampScenesConfig, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture of `stamp` moving on a straight line over a gradient: (F, H, W, 3)."""
    side = config.size
    background = _gradient(side, rng)
    picture = _resized(stamp.picture, rng.uniform(0.85, 1.0))
    room = np.array([side - picture.width, side - picture.height])
    start, end = rng.uniform(0, 1, (2, 2)) * room
    count = round(config.seconds * config.fps)
    frames = []
    for position in np.linspace(start, end, count).round().astype(int):
        frame = background.copy()
        frame.paste(picture, tuple(position.tolist()), picture)
        frames.append(np.asarray(frame))
    return np.stack(frames)


def _gradient(side: int, rng: np.random.Generator) -> Image.Image:
    colours = rng.uniform(*BACKGROUND, (2, 3))
    direction = rng.uniform(-1, 1, 2)
    y, x = np.mgrid[0:side, 0:side] / side - 0.5
    share = np.clip(0.5 + direction[0] * x + direction[1] * y, 0, 1)[..., None]
    return Image.fromarray((colours[0] * share + colours[1] * (1 - share)).astype(np.uint8), "RGB")


def _resized(picture: Image.Image, scale: float) -> Image.Image:
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BILINEAR)


def render_audio(
    scene: Scene, stamps: list[Stamp], config: StampScenesConfig, sample_rate: int, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Voice and sound effect over noise: (S,) mono in -1..1."""
    assert scene.said is not None, "a clip without an audio track has nothing to render"
    assert scene.heard is not None
    length = round(config.seconds * sample_rate)
    voice = _levelled(_repeated(stamps[scene.said].voice, length, round(VOICE_GAP_S * sample_rate), rng))
    sound = stamps[scene.heard].sound
    assert sound is not None, "a stamp that is heard has a sound"
    effect = _levelled(_repeated(sound, length, round(EFFECT_GAP_S * sample_rate), rng))
    background = _gain(rng.uniform(*config.background_db))
    if scene.leading == "verbal":
        effect = effect * background
    elif scene.leading == "nonverbal":
        voice = voice * background
    else:
        voice = voice * _gain(rng.uniform(*config.voice_db))
    noise = _gain(rng.uniform(*config.noise_db)) * LEVEL * rng.standard_normal(length)
    mixed = voice + effect + noise
    return (mixed / max(1.0, np.abs(mixed).max() / 0.99)).astype(np.float32)


def _gain(decibels: float) -> float:
    return float(10 ** (decibels / 20))


def _levelled(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scaled so that where it sounds at all its root mean square is LEVEL."""
    active = wave[np.abs(wave) > 0]
    return wave * (LEVEL / np.sqrt(np.mean(active**2))) if len(active) else wave


def _repeated(wave: NDArray[np.float32], length: int, gap: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Over and over, from a random moment on."""
    period = np.concatenate([wave, np.zeros(gap, np.float32)])
    start = int(rng.integers(len(period)))
    return np.resize(np.roll(period, -start), length)
