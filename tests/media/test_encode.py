"""What is written can be read, and is the same every time."""

from pathlib import Path

import numpy as np
import pytest

from clip4vla.media.decode import decode
from clip4vla.media.encode import encode, encode_mp3
from tests.media.sample import grey, index_of, onset, tone

RATE = 16000


def write(path: Path) -> Path:
    frames = np.stack([np.full((48, 64, 3), grey(index), np.uint8) for index in range(16)])
    encode(path, frames, 8, tone(RATE), RATE)
    return path


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    span = decode(write(tmp_path / "clip.mp4"), 0.0, None, frames=16, short_side=48, sample_rate=RATE)
    assert [index_of(frame) for frame in span.frames] == list(range(16))
    assert span.audio is not None
    assert span.audio.shape == (1, 2 * RATE)
    assert onset(span.audio, RATE) == pytest.approx(1.0, abs=0.01)
    assert np.abs(span.audio).max() / 32768 == pytest.approx(0.5, abs=0.1)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "one.mp4").read_bytes() == write(tmp_path / "two.mp4").read_bytes()


def test_the_same_sound_gives_the_same_mp3() -> None:
    sound = (tone(RATE) * 32767).astype(np.int16)[None]
    assert encode_mp3(sound, RATE) == encode_mp3(sound.copy(), RATE)
    assert len(encode_mp3(sound, RATE)) < 10_000
