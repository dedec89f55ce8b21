"""Speakers that the package of stamps lacks: the same samples every time, and none in both training and test."""

import numpy as np
import pytest

from clip4vla.corpora.stampscenes.stamps import likeness
from clip4vla.corpora.stampscenes.voices import TEST_VOICES, TRAINING_VOICES, Voice, say

RATE = 16_000
WORDS = ("un murciélago", "una vaca")


def test_every_voice_says_every_sentence_in_its_own_way() -> None:
    voices = TEST_VOICES[:2]
    spoken = say(WORDS, "es", voices, RATE)
    assert [len(waves) for waves in spoken] == [2, 2]
    for wave in (wave for waves in spoken for wave in waves):
        assert wave.dtype == np.float32
        assert 0.3 * RATE < len(wave) < 2 * RATE
        assert 0.01 < np.abs(wave).max() <= 1
    assert likeness(spoken[0][0], spoken[1][0]) < 0.6
    assert likeness(spoken[0][0], spoken[0][1]) < 0.6


def test_said_again_the_samples_are_the_same() -> None:
    once, again = (say(WORDS, "es", TEST_VOICES, RATE) for _ in range(2))
    for one, other in zip(once, again, strict=True):
        for wave, same in zip(one, other, strict=True):
            np.testing.assert_array_equal(wave, same)


@pytest.mark.parametrize("language", ["bg", "ca", "es", "fr", "ro", "ru"])
def test_every_language_of_the_stamps_has_every_voice(language: str) -> None:
    spoken = say(["taxi"], language, TEST_VOICES + TRAINING_VOICES, RATE)
    assert all(len(wave) > 0.2 * RATE for [wave] in spoken)


def test_no_speaker_of_the_test_clips_is_one_of_training() -> None:
    test, training = ({voice.variant for voice in voices} for voices in (TEST_VOICES, TRAINING_VOICES))
    assert not test & training
    assert len(training) == len(TRAINING_VOICES)


def test_a_voice_that_there_is_not_is_named() -> None:
    with pytest.raises(ValueError, match=r"espeak-ng has no voice xx\+nobody"):
        say(["taxi"], "xx", [Voice("nobody")], RATE)
