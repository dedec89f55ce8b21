"""The stages fetch and corpus on the miniature package: complete, playable, the same every time."""

import hashlib
import json
import re
from pathlib import Path

import pytest

from clip4vla.config import StampScenesConfig
from clip4vla.corpora.base import find_adapter
from clip4vla.corpora.stampscenes.compose import choose_stamps, compose
from clip4vla.corpora.stampscenes.fetch import CLIPART, STAMPS, fetch
from clip4vla.evaluation.labels import ROLES
from clip4vla.media.decode import decode
from clip4vla.records import SourceRecord


def digests(directory: Path) -> dict[str, str]:
    files = [path for path in sorted(directory.rglob("*")) if path.is_file()]
    return {str(p.relative_to(directory)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def corpus(
    package: Path, clipart: Path, stampscenes_config: StampScenesConfig, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    destination = tmp_path_factory.mktemp("corpus") / "stampscenes"
    compose(package, clipart, stampscenes_config, destination)
    return destination


def test_both_parts_are_read_by_their_adapters(corpus: Path, stampscenes_config: StampScenesConfig) -> None:
    for part, adapter in (("pretraining", "stampscenes"), ("captions", "msrvtt")):
        records = list(find_adapter(adapter)(corpus / part / "annotations"))
        assert all(isinstance(record, SourceRecord) for record in records)
        videos = {path.name for path in (corpus / part / "videos").iterdir()}
        assert videos == {f"{record.clip_id}.mp4" for record in records}
    splits = [record.split for record in records]
    pairs = stampscenes_config.caption_pairs
    related = {s: n * stampscenes_config.pictures_per_pair[s] for s, n in pairs.items()}
    assert {s: splits.count(s) for s in pairs} == {
        s: n + -(-15 * n // 100) + -(-5 * n // 100) for s, n in related.items()
    }
    labels = json.loads((corpus / "labels.json").read_text(encoding="utf-8"))
    assert set(labels["clips"]) == {record.clip_id for record in records}
    for record in records:
        label = labels["clips"][record.clip_id]
        assert set(label) <= set(ROLES)
        assert all(label["seen"] in text.text for text in record.texts[:3])
        if "sound" in label:
            assert label["sound"] in labels["sound"]
            assert label["speech"] in labels["speech"]


def test_a_clip_whose_label_has_no_sound_has_no_audio_track(corpus: Path) -> None:
    clips = json.loads((corpus / "labels.json").read_text(encoding="utf-8"))["clips"]
    silent = 0
    for clip_id, label in clips.items():
        span = decode(corpus / f"captions/videos/{clip_id}.mp4", 0.0, None, frames=1, short_side=48, sample_rate=16000)
        assert (span.audio is None) == ("sound" not in label)
        silent += span.audio is None
    assert silent == 3


def test_a_clip_can_be_seen_and_heard(corpus: Path, stampscenes_config: StampScenesConfig) -> None:
    video = next((corpus / "captions" / "videos").iterdir())
    span = decode(video, 0.0, None, frames=2, short_side=stampscenes_config.size, sample_rate=16000)
    assert span.frames[0].size == (stampscenes_config.size, stampscenes_config.size)
    assert span.audio is not None
    assert span.audio.shape[0] == 1
    assert span.audio.shape[1] / 16000 == pytest.approx(stampscenes_config.seconds, abs=1 / stampscenes_config.fps)
    assert span.audio.std() > 300


def test_composing_again_gives_the_same_corpus(
    corpus: Path, package: Path, clipart: Path, stampscenes_config: StampScenesConfig, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    compose(package, clipart, stampscenes_config, again)
    assert digests(again) == digests(corpus)


@pytest.mark.parametrize("kind", ["voices", "sounds", "pictures"])
def test_training_clips_alone_have_further_renderings(
    kind: str, corpus: Path, package: Path, clipart: Path, stampscenes_config: StampScenesConfig, tmp_path: Path
) -> None:
    labels = json.loads((corpus / "labels.json").read_text(encoding="utf-8"))["clips"]
    splits = {record.clip_id: record.split for record in find_adapter("msrvtt")(corpus / "captions/annotations")}
    could_change = {clip for clip, split in splits.items() if split == "train"}
    if kind == "pictures":  # of these labels the package of clip art has drawings for training
        could_change &= {clip for clip, label in labels.items() if label["seen"] in ("a dog", "a cow", "a bee")}
    else:
        could_change &= {clip for clip, label in labels.items() if "sound" in label}
    config = stampscenes_config.model_copy(update={f"training_{kind}": 2})
    compose(package, clipart, config, tmp_path / "further")
    before, after = (digests(each / "captions/videos") for each in (corpus, tmp_path / "further"))
    assert before.keys() == after.keys()
    changed = {Path(name).stem for name in before if before[name] != after[name]}
    assert changed < could_change
    assert 0.2 * len(could_change) < len(changed) < 0.8 * len(could_change)  # half keep the package's own


def test_too_few_stamps_are_refused(package: Path, stampscenes_config: StampScenesConfig) -> None:
    with pytest.raises(ValueError, match="stamps is 50, but the package has 10"):
        choose_stamps(package, stampscenes_config.model_copy(update={"stamps": 50}))


def test_fetching_records_what_the_package_is(package: Path, clipart: Path, tmp_path: Path) -> None:
    fetch(STAMPS, str(package), tmp_path / "raw")
    note = json.loads((tmp_path / "raw" / "package.json").read_text(encoding="utf-8"))
    assert note["version"] == "2022.06.04-1"
    assert note["sha256"] == hashlib.sha256(package.read_bytes()).hexdigest()
    assert (tmp_path / "raw" / "tuxpaint-stamps-default.deb").read_bytes() == package.read_bytes()
    fetch(CLIPART, str(clipart), tmp_path / "clipart")
    assert (tmp_path / "clipart" / "openclipart-svg.deb").read_bytes() == clipart.read_bytes()
    with pytest.raises(ValueError, match="is the package tuxpaint-stamps-default, not openclipart-svg"):
        fetch(CLIPART, str(package), tmp_path / "other")


def test_a_package_that_is_not_there_or_another_leaves_nothing(tmp_path: Path) -> None:
    other = tmp_path / "other.deb"
    other.write_bytes(b"!<arch>\nnothing of the kind")
    for path, complaint in ((tmp_path / "missing.deb", "is no file"), (other, "not a readable")):
        with pytest.raises(ValueError, match=complaint):
            fetch(STAMPS, str(path), tmp_path / "raw")
        assert not (tmp_path / "raw").exists()


def test_without_apt_the_message_says_what_to_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    for package in (STAMPS, CLIPART):
        with pytest.raises(ValueError, match=re.escape(f"(`apt-get download {package.name}`)")) as caught:
            fetch(package, None, tmp_path / "raw")
        assert package.setting in str(caught.value)
