"""Made corpora: the adapter of each reads them without a reject, finds the media, and they grow without changing."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clip4vla.corpora.base import find_adapter
from clip4vla.corpora.manifest import MANIFEST_FILE, read_manifest, write_manifest
from clip4vla.media.decode import decode
from clip4vla.records import SPLITS, SourceRecord, Split
from clip4vla.rehearsal import published
from clip4vla.rehearsal.footage import write_sound, write_video
from clip4vla.rehearsal.published import WRITERS, make_corpus, published_corpora, published_corpus

COUNTS: dict[Split, int] = {"train": 5, "val": 2, "test": 3}


@pytest.fixture
def files_made(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds of the media that would be encoded, by name; empty files take their places."""
    made: dict[str, float] = {}

    def note(path: Path, seconds: float, *_: object, **__: object) -> None:
        made[path.name] = seconds
        path.touch()

    monkeypatch.setattr(published, "write_video", note)
    monkeypatch.setattr(published, "write_sound", note)
    return made


def read(adapter: str, directory: Path) -> list[SourceRecord]:
    """The accepted records of the corpus; none may be rejected."""
    summary = write_manifest(find_adapter(adapter)(directory / "a"), directory / "m", directory / "manifest")
    assert not summary.rejected
    return list(read_manifest(directory / "manifest" / MANIFEST_FILE))


@pytest.mark.parametrize("adapter", WRITERS)
def test_the_adapter_accepts_all_that_is_made(adapter: str, tmp_path: Path, files_made: dict[str, float]) -> None:
    corpus = published_corpus(adapter)
    make_corpus(adapter, tmp_path / "a", tmp_path / "m", COUNTS, min_words=14)
    records = read(adapter, tmp_path)
    splits = [split for split in SPLITS if split in corpus.captions]
    assert Counter(record.split for record in records) == {split: COUNTS[split] for split in splits}
    for record in records:
        texts = [text.text for text in record.texts]
        assert len(texts) == corpus.captions[record.split]
        if adapter != "audioset":  # its sentences are labels
            assert all(len(text.split()) >= 14 for text in texts)
        if record.end_s is not None and Path(record.media).stem in {Path(name).stem for name in files_made}:
            assert record.end_s <= files_made[Path(record.media).name] + record.start_s
    assert {record.media for record in records} == set(files_made)


@pytest.mark.parametrize("adapter", WRITERS)
def test_a_corpus_grows_without_its_other_clips_changing(
    adapter: str, tmp_path: Path, files_made: dict[str, float]
) -> None:
    make_corpus(adapter, tmp_path / "a", tmp_path / "m", COUNTS)
    before = read(adapter, tmp_path)
    first = set(files_made)
    files_made.clear()
    make_corpus(adapter, tmp_path / "a", tmp_path / "m", {split: number + 4 for split, number in COUNTS.items()})
    after = read(adapter, tmp_path)
    assert {record.clip_id for record in before} < {record.clip_id for record in after}
    assert [record for record in after if record.clip_id in {record.clip_id for record in before}] == before
    if adapter != "howto100m":  # where several clips are of one video, the last of which gets longer
        assert not first & set(files_made)


def test_every_published_corpus_can_be_made_and_no_other() -> None:
    assert set(published_corpora()) == set(WRITERS) - {"folder"}
    for corpus in published_corpora().values():
        assert set(corpus.clips) == set(corpus.captions)
    with pytest.raises(ValueError, match="no corpus can be made for the adapter 'stampscenes', only for audiocaps, "):
        published_corpus("stampscenes")


def test_made_media_have_pictures_that_move_and_sound(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", seconds=1.0, width=64, height=48, fps=10, seed=1)
    write_sound(tmp_path / "a.wav", seconds=0.5, seed=1)
    video = decode(tmp_path / "a.mp4", 0.0, None, frames=3, short_side=48, sample_rate=16_000, max_sound_s=10.0)
    sound = decode(tmp_path / "a.wav", 0.0, None, frames=3, short_side=48, sample_rate=16_000, max_sound_s=10.0)
    assert len(video.frames) == 3
    first, *_, last = [np.asarray(frame, dtype=float) for frame in video.frames]
    assert first.shape == (48, 64, 3)
    assert np.abs(first - last).mean() > 10
    assert not len(sound.frames)
    for span, seconds in ((video, 1.0), (sound, 0.5)):
        assert span.audio is not None
        assert span.audio.shape[-1] == pytest.approx(16_000 * seconds, abs=1600)
