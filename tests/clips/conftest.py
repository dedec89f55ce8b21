"""A miniature corpus: eleven training clips and a few more, of every kind."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.format import Clip
from clip4vla.clips.ingest import ingest
from clip4vla.clips.transform import ClipTransform
from clip4vla.config import AudioConfig, ClipsConfig
from clip4vla.corpora.manifest import write_manifest
from clip4vla.records import AudioType, SourceRecord, Split, Text
from tests.media.sample import grey, tone, write_media

RATE = 8000
CLIPS = ClipsConfig(frames=3, size=32, max_seconds=1.5, workers=1, max_reject_fraction=0.5)
AUDIO = AudioConfig(
    sample_rate=RATE, n_fft=256, hop=128, tiles=1, freq_mask_fraction=0, time_mask_fraction=0, mask_width=0
)
KINDS = ("mono", "stereo", "silent", "sound")


def tokenize(sentences: Sequence[str]) -> Tensor:
    """Two numbers that differ between any two sentences of the tests."""
    return torch.tensor([[len(sentence), sum(sentence.encode())] for sentence in sentences])


TRANSFORM = ClipTransform(frames=2, image_size=32, max_samples=RATE // 2, tokenize=tokenize)


@dataclass(frozen=True)
class Corpus:
    """Its files."""

    manifest: Path
    media: Path


def write_kind(media: Path, kind: str) -> str:
    """One media file of `kind`; its name."""
    if kind == "sound":
        return write_media(media / "sound.wav", None, "pcm_s16le", rate=RATE, wave=tone(RATE, 2.0, 0.2)).name
    if kind == "silent":
        return write_media(media / "silent.mp4", "libx264", None).name
    waves = np.stack([tone(16000, 2.0, 0.3), 0.5 * tone(16000, 2.0, 0.6)])
    wave = waves if kind == "stereo" else waves[0]
    return write_media(media / f"{kind}.mkv", "libx264", "pcm_s16le", layout=kind, wave=wave, size=(48, 64)).name


def own_texts(split: Split, index: int) -> tuple[Text, ...]:
    """One to three texts that only this clip has."""
    kinds: tuple[AudioType | None, ...] = ("verbal", "nonverbal", None)
    return tuple(Text(f"{split} {index} text {t}", kinds[t]) for t in range(index % 3 + 1))


def write_corpus(
    directory: Path,
    counts: dict[Split, int],
    broken: int = 0,
    texts_of: Callable[[Split, int], tuple[Text, ...]] = own_texts,
) -> Corpus:
    """Clips of all kinds in turn, with the texts of `texts_of`, then `broken` ones that can't be decoded."""
    media = directory / "media"
    media.mkdir(parents=True)
    names = [write_kind(media, kind) for kind in KINDS]
    (media / "broken.mp4").write_text("nothing to see")
    records = [
        SourceRecord(
            f"{split}{index}",
            names[index % len(names)],
            split,
            texts_of(split, index),
            start_s=0.1 * (index % 2),
            end_s=None if index % 3 else 1.9,
        )
        for split, count in counts.items()
        for index in range(count)
    ]
    records += [SourceRecord(f"broken{i}", "broken.mp4", "train", (Text("text"),)) for i in range(broken)]
    write_manifest(records, media, directory / "manifest")
    return Corpus(directory / "manifest" / "manifest.parquet", media)


def jpeg(index: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A picture that `index_of` identifies."""
    buffer = BytesIO()
    Image.new("RGB", size, (grey(index),) * 3).save(buffer, "JPEG")
    return buffer.getvalue()


def make_clip(rate: int, seconds: float = 2.0, channels: int = 1) -> Clip:
    """Four grey frames, and a tone that begins at one second."""
    wave = (tone(rate, seconds) * 32767).astype(np.int16)
    return Clip("clip", tuple(map(jpeg, range(4))), np.stack([wave] * channels), (Text("a text"),))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return write_corpus(tmp_path_factory.mktemp("corpus"), {"train": 11, "val": 2, "test": 4}, broken=1)


@pytest.fixture(scope="session")
def clips(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of clips under one directory: `one` with eleven training clips, `two` with five."""
    directory = tmp_path_factory.mktemp("clips")
    ingest(corpus.manifest, corpus.media, directory / "one", CLIPS, AUDIO)
    small = write_corpus(directory / "source", {"train": 5})
    ingest(small.manifest, small.media, directory / "two", CLIPS, AUDIO)
    return directory


@pytest.fixture
def dataset(clips: Path) -> ClipDataset:
    """The training clips of both corpora."""
    return ClipDataset(sorted(clips.glob("*/train.lance")))


WITH_BOTH, ONLY_OWN, ONLY_SHARED = range(6), (6,), (7,)
"""Clips of `sharing` by which captions they have."""


def some_shared_texts(_: Split, index: int) -> tuple[Text, ...]:
    """Long texts that only this clip has, and short ones of four that others have, too."""
    own = [Text(f"only clip {index} has sentence {t}") for t in range(3)]
    shared = [Text(f"bell {number % 4}") for number in range(index, index + 2)]
    if index in WITH_BOTH:
        return (*own, *shared)
    return tuple(own[:1] if index in ONLY_OWN else shared)


@pytest.fixture(scope="session")
def sharing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight training clips of which most have captions of their own and captions that others have."""
    directory = tmp_path_factory.mktemp("sharing")
    corpus = write_corpus(directory / "source", {"train": 8}, texts_of=some_shared_texts)
    ingest(corpus.manifest, corpus.media, directory / "clips", CLIPS, AUDIO)
    return directory / "clips" / "train.lance"
