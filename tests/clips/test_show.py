"""A card holds a real picture and a real sound of its clip, both small, and says what it lacks."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip4vla.clips.format import Clip
from clip4vla.clips.show import LONGEST_S, LONGEST_SIDE, clip_card
from clip4vla.media.decode import decode
from clip4vla.records import Text
from tests.media.sample import grey, index_of, onset, tone

RATE = 16000


def jpeg(index: int, size: tuple[int, int] = (64, 48)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (grey(index),) * 3).save(buffer, "JPEG")
    return buffer.getvalue()


def clip(seconds: float = 2.0, channels: int = 1, rate: int = RATE) -> Clip:
    wave = (tone(rate, seconds) * 32767).astype(np.int16)
    return Clip("clip", tuple(map(jpeg, range(4))), np.stack([wave] * channels), (Text("a text"),))


def heard(sound: bytes, path: Path, rate: int = RATE) -> np.ndarray:
    path.write_bytes(sound)
    span = decode(path, 0.0, None, frames=1, short_side=32, sample_rate=rate)
    assert span.audio is not None
    return span.audio


@pytest.mark.parametrize(("channels", "rate"), [(1, RATE), (2, RATE), (1, 8000), (1, 20000)])
def test_its_sound_is_that_of_the_clip(channels: int, rate: int, tmp_path: Path) -> None:
    card = clip_card(clip(channels=channels, rate=rate), rate, "title")
    assert card.sound is not None
    audio = heard(card.sound.data, tmp_path / "sound.mp3", rate)
    assert audio.shape[0] == channels
    assert audio.shape[1] == pytest.approx(2.0 * rate, rel=0.05)
    assert onset(audio, rate) == pytest.approx(1.0, abs=0.01)
    assert np.abs(audio.astype(int)).max() / 32768 == pytest.approx(0.5, abs=0.1)
    assert card.note == ""


def test_its_pictures_are_spread_over_the_clip() -> None:
    card = clip_card(clip(), RATE, "title")
    assert [index_of(Image.open(io.BytesIO(picture))) for picture in card.pictures] == [1, 3]
    single = clip_card(replace(clip(), frames=(jpeg(5),)), RATE, "title")
    assert single.pictures == [jpeg(5)]


def test_a_large_picture_is_made_small_and_a_small_one_is_left_alone() -> None:
    card = clip_card(replace(clip(), frames=(jpeg(3, (640, 360)), jpeg(4))), RATE, "title")
    large = Image.open(io.BytesIO(card.pictures[0]))
    assert large.size == (LONGEST_SIDE, LONGEST_SIDE * 360 // 640)
    assert index_of(large) == 3
    assert card.pictures[1] == jpeg(4)


def test_of_a_long_sound_the_beginning_is_heard_and_the_card_says_so(tmp_path: Path) -> None:
    card = clip_card(clip(seconds=30.0), RATE, "title")
    assert card.sound is not None
    assert heard(card.sound.data, tmp_path / "sound.mp3").shape[1] == pytest.approx(LONGEST_S * RATE, rel=0.01)
    assert len(card.sound.data) < 60_000
    assert card.note == "The first 12 of 30 seconds of sound."


def test_it_says_what_the_clip_lacks() -> None:
    silent = clip_card(replace(clip(), audio=None), RATE, "title")
    assert (silent.sound, silent.note) == (None, "No sound.")
    unseen = clip_card(replace(clip(), frames=()), RATE, "title")
    assert (list(unseen.pictures), unseen.note) == ([], "No pictures.")
    assert clip_card(replace(clip(), frames=(), audio=None), RATE, "title").note == "Neither pictures nor sound."
