"""What an adapter is, and where adapters are found by name.

An adapter reads its corpus' *published* annotation files and yields a `SourceRecord` per clip, or a `Reject` for an
entry that says nothing usable. It knows nothing of tasks, decoding or training, and looks at no media: a record's
`media` names a file under the media directory, with or without its suffix.
"""

import importlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from clip4vla.config import SHARDS_ADAPTER, CorpusConfig
from clip4vla.records import Reject, SourceRecord, Split, Text


class Adapter(Protocol):
    """Reads the annotation files under a directory."""

    def __call__(self, annotations: Path) -> Iterator[SourceRecord | Reject]:
        """Yield every entry once.

        Raises:
            ValueError: a file is missing or isn't in the published format; the message names file and place.
        """


ADAPTERS = {
    "audiocaps": "clip4vla.corpora.audiocaps:read",
    "audioset": "clip4vla.corpora.audioset:read",
    "clotho": "clip4vla.corpora.clotho:read",
    "folder": "clip4vla.corpora.folder:read",
    "howto100m": "clip4vla.corpora.howto100m:read",
    "msrvtt": "clip4vla.corpora.msrvtt:read",
    "msrvtt-1ka": "clip4vla.corpora.msrvtt:read_1ka",
    "msrvtt-1ka-7k": "clip4vla.corpora.msrvtt:read_1ka_7k",
    "stampscenes": "clip4vla.corpora.stampscenes.adapter:read",
    "vatex": "clip4vla.corpora.vatex:read",
    "vatex-hgr": "clip4vla.corpora.vatex:read_hgr",
    SHARDS_ADAPTER: "clip4vla.corpora.webdataset:read",
}


def check_adapter(name: str) -> None:
    """Refuse a name that no adapter has.

    Raises:
        ValueError: there is no such adapter.
    """
    if name not in ADAPTERS:
        raise ValueError(f"there is no corpus adapter {name!r}; there are {', '.join(sorted(ADAPTERS))}")


def find_adapter(name: str) -> Adapter:
    """The adapter that is named `name` here.

    Raises:
        ValueError: there is no such adapter.
    """
    check_adapter(name)
    module, function = ADAPTERS[name].split(":")
    adapter: Adapter = getattr(importlib.import_module(module), function)
    return adapter


def read_corpus(corpus: CorpusConfig) -> Iterator[SourceRecord | Reject]:
    """Every entry of a corpus, once, by its adapter and settings.

    Raises:
        ValueError: there is no such adapter, or its files aren't in the published format.
    """
    if corpus.adapter == SHARDS_ADAPTER:
        from clip4vla.corpora.webdataset import read  # which imports this module

        return read(Path(corpus.annotations), corpus.shards)
    return find_adapter(corpus.adapter)(Path(corpus.annotations))


@dataclass(frozen=True)
class ShardRecord(SourceRecord):
    """A clip of a member of a tar file: `media` is the path of the `shard`, a slash and the name of the member."""

    shard: str = ""


@dataclass(frozen=True)
class Excerpt(SourceRecord):
    """A span of a longer recording, which people keep either whole or already cut.

    `media` names the whole recording. A file that has one of `cut_names` is the span and nothing else.
    """

    cut_names: tuple[str, ...] = ()


def make_excerpt(
    clip_id: str, media: str, split: Split, texts: Sequence[Text], span: tuple[float, float], where: str
) -> Excerpt | Reject:
    """The clip that is `span` (seconds) of the recording `media`, or why there is none; `where` it's written."""
    start_s, end_s = span
    if not media:
        return Reject(clip_id, media, split, "no_id", where)
    if not (0 <= start_s < end_s < math.inf):
        return Reject(clip_id, media, split, "bad_span", f"{where}: {start_s} to {end_s} s")
    return Excerpt(clip_id, media, split, tuple(texts), start_s, end_s, cut_names(media, start_s, end_s))


def cut_names(media: str, start_s: float, end_s: float) -> tuple[str, ...]:
    """What the usual tools call a file that holds `start_s`..`end_s` of the recording `media` and nothing else.

    `ID` alone is the whole recording. `ID_START`, `ID_START_END`, `ID_START-END`, and each of the four after a Y, are
    cut; START and END in seconds (30, 30.0, 30.000, 000030) or milliseconds (30000).
    """
    names = [f"Y{media}"]
    for write in (_seconds, "{:.3f}".format, "{:.1f}".format, _padded, _milliseconds):
        start, end = write(start_s), write(end_s)
        names += [f"{y}{media}_{start}{rest}" for rest in ("", f"_{end}", f"-{end}") for y in ("", "Y")]
    return tuple(dict.fromkeys(names))


def _seconds(time_s: float) -> str:
    return f"{time_s:g}"


def _padded(time_s: float) -> str:
    return f"{round(time_s):06d}"


def _milliseconds(time_s: float) -> str:
    return str(round(time_s * 1000))


def parse_seconds(value: object) -> float:
    """Seconds of a cell of a table, NaN (which no span accepts) for what is no number."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return math.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return math.nan
