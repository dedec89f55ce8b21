"""Which sounds are speech, and the audio type that follows for texts without one."""

from pathlib import Path

import lance
import numpy as np
import pytest
from numpy.typing import NDArray

from clip4vla.clips import speech
from clip4vla.clips.ingest import ingest
from clip4vla.clips.speech import label, speech_share
from clip4vla.records import Text
from tests.clips.conftest import AUDIO, CLIPS, Corpus

RNG = np.random.default_rng(0)
VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (570, 840, 2410), (300, 870, 2240))
"""Formants in Hz of a man's a, i, o and u (Peterson and Barney, 1952)."""


def babble(rate: int, seconds: float) -> NDArray[np.int16]:
    """A voice without words: vowels four times a second, from a buzz of falling pitch through resonances. (1, S)."""
    pieces = []
    for syllable in range(round(4 * seconds)):
        times = np.arange(rate // 4) / rate
        pitch = 130 - 60 * times
        buzz = np.diff(np.floor(np.cumsum(pitch) / rate), prepend=0.0)
        wave = buzz
        for formant in VOWELS[syllable % len(VOWELS)]:
            wave = resonate(wave, formant, 90.0, rate)
        envelope = np.sin(np.pi * np.arange(len(wave)) / len(wave)) ** 0.5
        pieces.append(wave / np.abs(wave).max() * envelope)
    return (np.concatenate(pieces)[None] * 12000).astype(np.int16)


def resonate(wave: NDArray[np.float64], hertz: float, bandwidth: float, rate: int) -> NDArray[np.float64]:
    radius = np.exp(-np.pi * bandwidth / rate)
    turn = 2 * radius * np.cos(2 * np.pi * hertz / rate)
    out = np.zeros(len(wave) + 2)
    for index, value in enumerate(wave):
        out[index + 2] = value + turn * out[index + 1] - radius**2 * out[index]
    return out[2:]


@pytest.mark.parametrize("rate", [8000, 16000])
def test_a_voice_is_speech_and_other_sounds_are_not(rate: int) -> None:
    voice = babble(rate, 3.0)
    noise = (RNG.standard_normal((2, 3 * rate)) * 3000).astype(np.int16)
    tone = (np.sin(np.arange(3 * rate) * 2 * np.pi * 440 / rate)[None] * 12000).astype(np.int16)
    assert speech_share(voice, rate) > 0.5
    assert speech_share(noise, rate) < 0.1
    assert speech_share(tone, rate) < 0.1
    assert speech_share(np.zeros((1, 3 * rate), np.int16), rate) == 0


def test_half_a_voice_is_half_speech() -> None:
    voice = babble(16000, 3.0)
    share = speech_share(voice, 16000)
    assert speech_share(np.concatenate([voice, np.zeros_like(voice)], axis=1), 16000) == pytest.approx(
        share / 2, abs=0.1
    )


def test_another_sample_rate_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"clips\.verbal_above needs audio\.sample_rate to be 8000 or 16000, not 22050"
    ):
        speech_share(np.zeros((1, 22050), np.int16), 22050)


def test_only_texts_without_a_type_are_labelled() -> None:
    texts = (Text("said", "verbal"), Text("heard", "nonverbal"), Text("either"))
    assert label(texts, 0.6, 0.5) == (*texts[:2], Text("either", "verbal"))
    assert label(texts, 0.5, 0.5) == (*texts[:2], Text("either", "nonverbal"))


def test_the_share_is_a_column_of_the_clips_and_decides_the_types(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speech, "speech_share", lambda audio, _: 0.8 if len(audio) == 2 else 0.1)
    ingest(corpus.manifest, corpus.media, tmp_path / "out", CLIPS.model_copy(update={"verbal_above": 0.5}), AUDIO)
    rows = lance.dataset(str(tmp_path / "out" / "train.lance")).to_table().to_pylist()
    for row in rows:
        expected = {0: None, 1: pytest.approx(0.1), 2: pytest.approx(0.8)}[row["channels"]]
        assert row["speech"] == expected
        untyped = [text["audio_type"] for text in row["texts"][2:]]
        assert set(untyped) <= {{0: None, 1: "nonverbal", 2: "verbal"}[row["channels"]]}
    assert {row["channels"] for row in rows if len(row["texts"]) == 3} == {0, 1, 2}
