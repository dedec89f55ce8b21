"""The stamps of a package: which are taken, and what is decoded of them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from clip4vla.corpora.stampscenes.stamps import decode_stamp, likeness, read_stamps
from clip4vla.rehearsal.stamp_package import FOLDER, NAMES, write_stamp_package


def test_stamps_have_labels_in_both_languages_and_a_sound_where_there_is_one(package: Path) -> None:
    stamps = read_stamps(package, "es")
    assert [stamp.label for stamp in stamps] == [f"a {name}" for name in sorted(NAMES)]
    assert [stamp.spoken for stamp in stamps] == [f"un {name}o" for name in sorted(NAMES)]
    assert {stamp.label for stamp in stamps if stamp.sound} == {f"a {name}" for name in NAMES[:6]}
    assert read_stamps(package, "fr")[0].spoken == "un apeo"


def test_a_stamp_of_the_same_label_gives_another_recording(package: Path, tmp_path: Path) -> None:
    first = {stamp.label: stamp for stamp in read_stamps(package, "es")}
    sounds = {name: first[f"a {name}"].sound or b"" for name in ("hen", "owl")}
    others = {"white/cow": (b"A cow.", b"another recording"), "white/hen": (b"A hen.", sounds["owl"])}
    further = {
        f"{FOLDER}/{name}{suffix}": data
        for name, pair in others.items()
        for suffix, data in zip((".txt", ".ogg"), pair, strict=True)
    }
    deb = write_stamp_package(tmp_path / "stamps.deb", further=further)
    found = {stamp.label: stamp for stamp in read_stamps(deb, "es")}
    assert found.pop("a cow") == dataclasses.replace(first.pop("a cow"), other_sounds=(b"another recording",))
    assert found == first  # the hen's other sound is the owl's: it tells nothing


def test_a_language_without_voices_gives_no_stamps(package: Path) -> None:
    assert read_stamps(package, "ru") == []


def test_a_stamp_is_decoded_to_a_picture_and_sounds_without_silence(package: Path) -> None:
    stamp = next(stamp for stamp in read_stamps(package, "es") if stamp.sound)
    stamp = decode_stamp(stamp, sample_rate=16000, picture_side=30)
    assert stamp.picture.mode == "RGBA"
    assert max(stamp.picture.size) == 30
    assert len(stamp.voice) == pytest.approx(0.4 * 16000, rel=0.02)
    assert stamp.sound is not None
    assert len(stamp.sound) == pytest.approx(0.2 * 16000, rel=0.02)
    assert stamp.voice.dtype == np.float32
    assert 0.3 < np.abs(stamp.voice).max() <= 1


@pytest.mark.parametrize("part", ["picture", "voice", "sound"])
def test_a_stamp_that_cannot_be_decoded_is_named(package: Path, part: str) -> None:
    stamp = next(stamp for stamp in read_stamps(package, "es") if stamp.sound)
    broken = dataclasses.replace(stamp, **{part: b"this is neither a picture nor a sound"})
    with pytest.raises(ValueError, match=stamp.label):
        decode_stamp(broken, sample_rate=16000, picture_side=30)


def test_a_sound_is_like_itself_louder_and_later_but_not_like_another() -> None:
    noise = np.random.default_rng(0).standard_normal((2, 16000)).astype(np.float32)
    later = np.concatenate([np.zeros(800, np.float32), 0.3 * noise[0]])
    assert likeness(noise[0], later) == pytest.approx(1, abs=0.01)
    assert likeness(noise[0], noise[1]) < 0.2
    assert likeness(noise[0], np.zeros(16000, np.float32)) == 0
