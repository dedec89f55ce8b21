"""The stage unseen on the miniature packages: test clips in which one thing, and nothing else, is another."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from clip4vla.config import StampScenesConfig
from clip4vla.corpora.base import find_adapter
from clip4vla.corpora.stampscenes.compose import compose
from clip4vla.corpora.stampscenes.unseen import compose_unseen
from clip4vla.media.decode import Span, decode
from clip4vla.records import SourceRecord
from clip4vla.rehearsal.stamp_package import DRAWN, write_stamp_package

PARTS = ("voices", "sounds", "pictures")


def span(corpus: Path, clip_id: str) -> Span:
    return decode(corpus / f"videos/{clip_id}.mp4", 0.0, None, frames=2, short_side=48, sample_rate=16000)


def records(corpus: Path) -> dict[str, SourceRecord]:
    found = list(find_adapter("msrvtt")(corpus / "annotations"))
    assert all(isinstance(record, SourceRecord) for record in found)
    return {record.clip_id: record for record in found if isinstance(record, SourceRecord)}


@pytest.fixture(scope="module")
def original(
    package: Path, clipart: Path, stampscenes_config: StampScenesConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    destination = tmp_path_factory.mktemp("original") / "stampscenes"
    compose(package, clipart, stampscenes_config, destination)
    return destination


@pytest.fixture(scope="module")
def unseen(
    package: Path, clipart: Path, stampscenes_config: StampScenesConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    destination = tmp_path_factory.mktemp("unseen") / "stampscenes-unseen"
    compose_unseen(package, clipart, stampscenes_config, destination)
    return destination


@pytest.fixture(scope="module")
def labels(original: Path) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads((original / "labels.json").read_text(encoding="utf-8"))["clips"]
    return found


def test_a_part_has_test_clips_with_their_ids_and_captions(
    original: Path, unseen: Path, labels: dict[str, dict[str, str]]
) -> None:
    test = {name: record for name, record in records(original / "captions").items() if record.split == "test"}
    for part in PARTS:
        found = records(unseen / part)
        assert found == {name: test[name] for name in found}
        assert {path.name for path in (unseen / part / "videos").iterdir()} == {f"{name}.mp4" for name in found}
    with_sound = {name for name in test if "sound" in labels[name]}
    assert records(unseen / "voices").keys() == records(unseen / "sounds").keys() == with_sound
    assert records(unseen / "pictures").keys() == {name for name in test if labels[name]["seen"] in DRAWN}


@pytest.mark.parametrize("part", ["voices", "sounds"])
def test_of_another_voice_or_sound_all_pictures_are_the_same(original: Path, unseen: Path, part: str) -> None:
    for name in records(unseen / part):
        one, other = span(original / "captions", name), span(unseen / part, name)
        assert [frame.tobytes() for frame in one.frames] == [frame.tobytes() for frame in other.frames]
        assert one.audio is not None
        assert other.audio is not None
        assert one.audio.shape == other.audio.shape
        assert np.abs(np.corrcoef(one.audio[0], other.audio[0])[0, 1]) < 0.95


def test_of_another_picture_the_sound_is_the_same(original: Path, unseen: Path) -> None:
    for name in records(unseen / "pictures"):
        one, other = span(original / "captions", name), span(unseen / "pictures", name)
        assert [frame.tobytes() for frame in one.frames] != [frame.tobytes() for frame in other.frames]
        assert (one.audio is None) == (other.audio is None)
        if one.audio is not None and other.audio is not None:
            np.testing.assert_array_equal(one.audio, other.audio)


def digests(directory: Path) -> dict[str, str]:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_composing_again_gives_the_same_bytes(
    unseen: Path, package: Path, clipart: Path, stampscenes_config: StampScenesConfig, tmp_path: Path
) -> None:
    compose_unseen(package, clipart, stampscenes_config, tmp_path / "again")
    assert digests(tmp_path / "again") == digests(unseen)


def test_where_no_test_clip_has_another_picture_the_part_is_named(
    clipart: Path, stampscenes_config: StampScenesConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clip4vla.corpora.stampscenes.unseen.read_unseen_pictures", lambda *_: {})
    deb = write_stamp_package(tmp_path / "stamps.deb")
    with pytest.raises(ValueError, match="there are no other pictures of what the test clips"):
        compose_unseen(deb, clipart, stampscenes_config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
