"""A preview has real pictures and the real sound of its clip, both small, and lacks what the clip lacks."""

from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip4vla.clips.preview import LONGEST_S, LONGEST_SIDE, make_preview
from clip4vla.media.decode import decode
from tests.clips.conftest import jpeg, make_clip
from tests.media.sample import index_of, onset

RATE = 16_000


def decoded(sound: bytes | None, path: Path, rate: int = RATE) -> np.ndarray:
    assert sound is not None
    path.write_bytes(sound)
    span = decode(path, 0.0, None, frames=1, short_side=32, sample_rate=rate)
    assert span.audio is not None
    return span.audio


@pytest.mark.parametrize(("channels", "rate"), [(1, RATE), (2, RATE), (1, 8000), (1, 20000)])
def test_its_sound_is_that_of_the_clip(channels: int, rate: int, tmp_path: Path) -> None:
    preview = make_preview(make_clip(rate, channels=channels), rate)
    audio = decoded(preview.sound, tmp_path / "sound.mp3", rate)
    assert audio.shape[0] == channels
    assert audio.shape[1] == pytest.approx(2.0 * rate, rel=0.05)
    assert onset(audio, rate) == pytest.approx(1.0, abs=0.01)
    assert np.abs(audio.astype(int)).max() / 32768 == pytest.approx(0.5, abs=0.1)


def test_its_pictures_are_spread_over_the_clip() -> None:
    preview = make_preview(make_clip(RATE), RATE)
    assert [index_of(Image.open(BytesIO(picture))) for picture in preview.pictures] == [1, 3]
    assert make_preview(replace(make_clip(RATE), frames=(jpeg(5),)), RATE).pictures == (jpeg(5),)


def test_a_large_picture_is_made_small_and_a_small_one_is_left_alone() -> None:
    preview = make_preview(replace(make_clip(RATE), frames=(jpeg(3, (640, 360)), jpeg(4))), RATE)
    large = Image.open(BytesIO(preview.pictures[0]))
    assert large.size == (LONGEST_SIDE, LONGEST_SIDE * 360 // 640)
    assert index_of(large) == 3
    assert preview.pictures[1] == jpeg(4)


def test_of_a_long_sound_it_has_the_beginning(tmp_path: Path) -> None:
    sound = make_preview(make_clip(RATE, seconds=30.0), RATE).sound
    audio = decoded(sound, tmp_path / "sound.mp3")
    assert audio.shape[1] == pytest.approx(LONGEST_S * RATE, rel=0.01)
    assert onset(audio, RATE) == pytest.approx(1.0, abs=0.01)
    assert len(sound or b"") < 60_000


def test_a_clip_without_frames_or_sound_has_a_preview_without_them() -> None:
    assert make_preview(replace(make_clip(RATE), audio=None), RATE).sound is None
    assert make_preview(replace(make_clip(RATE), frames=()), RATE).pictures == ()
