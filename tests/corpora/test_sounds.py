"""Variants of a sound: another recording to a computer, the same thing to an ear, and the same by the same seed."""

import numpy as np
import pytest
from numpy.typing import NDArray

from clip4vla.corpora.stampscenes.compose import SAME_SOUND
from clip4vla.corpora.stampscenes.sounds import SEMITONES, TEMPO, vary_sound
from clip4vla.corpora.stampscenes.stamps import likeness

RATE = 16_000


def chirp(seconds: float) -> NDArray[np.float32]:
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.5 * np.sin(2 * np.pi * (300 * time + 200 * time**2)) * np.exp(-time)).astype(np.float32)


@pytest.mark.parametrize("seconds", [0.19, 1.0, 7.0])
def test_a_variant_has_another_pitch_and_tempo(seconds: float) -> None:
    wave = chirp(seconds)
    varied = vary_sound(wave, RATE, np.random.default_rng(0))
    assert varied.dtype == np.float32
    assert varied.ndim == 1
    assert np.isfinite(varied).all()
    assert len(wave) / TEMPO[1] * 0.9 < len(varied) < len(wave) / TEMPO[0] * 1.1
    assert np.sqrt(np.mean(varied**2)) > 0.1 * np.sqrt(np.mean(wave**2))
    assert likeness(wave, varied) < SAME_SOUND


def test_a_tone_is_shifted_by_some_semitones() -> None:
    tone = np.sin(2 * np.pi * 800 * np.arange(RATE) / RATE).astype(np.float32)
    for seed in range(4):
        spectrum = np.abs(np.fft.rfft(vary_sound(tone, RATE, np.random.default_rng(seed)), 4 * RATE))
        semitones = abs(12 * np.log2(spectrum.argmax() / 4 / 800))
        assert SEMITONES[0] - 0.3 < semitones < SEMITONES[1] + 0.3


def test_the_seed_decides() -> None:
    one, same, other = (vary_sound(chirp(0.5), RATE, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    assert len(one) != len(other)
