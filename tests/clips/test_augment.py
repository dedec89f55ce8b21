"""Augmentation changes what it is set to change, by a seed, and nothing where it is off."""

import numpy as np
import pytest
from numpy.typing import NDArray

from clip4vla.clips.augment import augment_frames, augment_sound
from clip4vla.config import AugmentationConfig

RATE = 16_000
OFF = AugmentationConfig()


def tone(hertz: float = 1000.0) -> NDArray[np.float32]:
    return (0.1 * np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE)).astype(np.float32)[None]


def pictures() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (2, 8, 10, 3), dtype=np.uint8)


def rms(wave: NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(wave**2)))


def test_nothing_is_changed_and_nothing_is_drawn_where_it_is_off() -> None:
    rng = np.random.default_rng(1)
    np.testing.assert_array_equal(augment_sound(tone(), OFF, rng), tone())
    np.testing.assert_array_equal(augment_frames(pictures(), OFF, rng), pictures())
    assert rng.uniform() == np.random.default_rng(1).uniform()


def test_speed_changes_pitch_and_length_together() -> None:
    factors = set()
    for seed in range(5):
        wave = augment_sound(tone(), AugmentationConfig(speed=0.2), np.random.default_rng(seed))
        speed = RATE / wave.shape[1]
        spectrum = np.abs(np.fft.rfft(wave[0], 4 * RATE))
        assert 0.79 < speed < 1.26
        assert spectrum.argmax() / 4 == pytest.approx(1000 * speed, rel=0.01)
        factors.add(round(speed, 3))
    assert len(factors) == 5


def test_tilt_changes_the_balance_of_low_and_high_but_not_the_level() -> None:
    wave = tone(200) + tone(6000)
    balances = []
    for seed in range(6):
        changed = augment_sound(wave, AugmentationConfig(tilt=0.8), np.random.default_rng(seed))
        spectrum = np.abs(np.fft.rfft(changed[0]))
        balances.append(spectrum[6000] / spectrum[200])
        assert rms(changed) == pytest.approx(rms(wave), rel=1e-4)
    assert min(balances) < 0.8
    assert max(balances) > 1.25


def test_noise_is_so_many_decibels_below_the_sound() -> None:
    changed = augment_sound(tone(), AugmentationConfig(noise=(12.0, 12.0)), np.random.default_rng(0))
    assert 20 * np.log10(rms(tone()) / rms(changed - tone())) == pytest.approx(12, abs=0.2)


def test_gain_stays_within_its_decibels_and_nothing_is_louder_than_full_scale() -> None:
    gains = [
        20
        * np.log10(rms(augment_sound(tone(), AugmentationConfig(gain=6.0), np.random.default_rng(seed))) / rms(tone()))
        for seed in range(8)
    ]
    assert -6 <= min(gains) < -1 < 1 < max(gains) <= 6
    loud = augment_sound(9 * tone(), AugmentationConfig(gain=20.0), np.random.default_rng(2))
    assert np.abs(loud).max() <= 1


def test_frames_are_mirrored_with_the_probability_given() -> None:
    mirrored = augment_frames(pictures(), AugmentationConfig(mirror=1.0), np.random.default_rng(0))
    np.testing.assert_array_equal(mirrored, pictures()[:, :, ::-1])
    half = AugmentationConfig(mirror=0.5)
    changed = [
        not np.array_equal(augment_frames(pictures(), half, np.random.default_rng(s)), pictures()) for s in range(40)
    ]
    assert 10 < sum(changed) < 30


def test_grey_frames_have_three_equal_channels() -> None:
    grey = augment_frames(pictures(), AugmentationConfig(grey=1.0), np.random.default_rng(0))
    assert grey.shape == pictures().shape
    assert (grey == grey[..., :1]).all()


def test_zoom_keeps_the_size_and_colour_changes_all_frames_alike() -> None:
    same = np.repeat(pictures()[:1], 2, axis=0)
    for config in (AugmentationConfig(zoom=0.5), AugmentationConfig(colour=0.4)):
        changed = augment_frames(same, config, np.random.default_rng(1))
        assert changed.shape == same.shape
        assert changed.dtype == np.uint8
        assert not np.array_equal(changed, same)
        np.testing.assert_array_equal(changed[0], changed[1])
