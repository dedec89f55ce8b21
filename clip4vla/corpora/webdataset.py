"""WebDataset: tar shards, as video2dataset writes and the `webdataset` library reads them.

A sample is the members of a shard that follow one another and whose names are the same up to the first dot, its key:
`000012.mp4` (or any other media), `000012.txt`, `000012.json`. `config.ShardsConfig` says where in them the texts,
spans, audio types and splits are. A record's media is `SHARD.tar/KEY.mp4`, which is decoded from the shard.

Each sample is a record for each of its spans, or a reject, which names shard and key. What isn't of a sample is left
out: folders, hidden members, members without a suffix, those in a folder such as `__meta__`. So are files beside the
shards, such as video2dataset's `00000.parquet` and `00000_stats.json`.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import IO, Any, get_args

from clip4vla.config import ShardsConfig
from clip4vla.corpora.base import ShardRecord, parse_seconds
from clip4vla.corpora.media_index import AUDIO_SUFFIXES, VIDEO_SUFFIXES, is_unicode, walk_files
from clip4vla.media.shard import SUFFIX, Member, read_member, read_members
from clip4vla.records import SPLITS, AudioType, Reject, SourceRecord, Split, Text

SAMPLE_NAME = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")
"""Key and suffix, as the library has them."""
META_NAME = re.compile(r"__[^/]*__($|/)")
"""Members that are about the shard."""
COMPRESSED = re.compile(r"(.*\.tar)\.(gz|bz2|xz|zst|lz4)|(.*)\.(tgz|tbz2|txz)")
TEXT_LIMIT = 1 << 24
"""Bytes of a JSON file or of a text."""
WHOLE: tuple[float, float | None] = (0.0, None)
"""The span that is all of the file."""


class _UnusableError(Exception):
    """A sample or span that can't be used."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


@dataclass
class _Sample:
    """The members of a sample by suffix, and what was read of it."""

    key: str
    members: dict[str, Member] = field(default_factory=dict)
    twice: list[str] = field(default_factory=list)
    """Suffixes of which there are several members."""


def read(annotations: Path, shards: ShardsConfig | None = None) -> Iterator[SourceRecord | Reject]:
    """Yield the clips of all shards below `annotations`, which is the directory of media; see `base.Adapter`."""
    shards = shards or ShardsConfig()
    found = 0
    for path in sorted(walk_files(annotations)):
        compressed = COMPRESSED.fullmatch(path)
        name = path if compressed is None else compressed[1] or f"{compressed[3]}{SUFFIX}"
        if not fnmatchcase(name, shards.pattern):
            continue
        found += 1
        if compressed is not None:
            yield _reject(path, "", "compressed", "decompress it: members of it can't be sought")
        elif not is_unicode(path):
            yield _reject(path, "", "bad_name", "the name of the shard isn't UTF-8")
        else:
            yield from _read_shard(annotations, path, shards)
    if not found:
        raise ValueError(f"{annotations} has no shards: no file below it is called {shards.pattern}")


def _reject(shard: str, name: str, reason: str, detail: str, split: str = "train") -> Reject:
    path = f"{shard}/{name}" if name else shard
    return Reject(path, path, split, reason, f"{shard}{': ' if name else ''}{name}: {detail}")


def _read_shard(directory: Path, shard: str, config: ShardsConfig) -> Iterator[SourceRecord | Reject]:
    try:
        file = (directory / shard).open("rb")
    except OSError as error:
        yield _reject(shard, "", "unreadable", str(error.strerror))
        return
    done: set[str] = set()
    with file:
        for item in _samples(directory / shard):
            if not isinstance(item, _Sample):
                yield _reject(shard, item.name, item.reason, item.detail)
                continue
            reader = _Reader(file, shard, config, item)
            yield from reader.clips(is_late=item.key in done)
            done.add(item.key)


def _samples(path: Path) -> Iterator[Any]:
    """`_Sample`s, and `Fault`s as they come between them."""
    sample: _Sample | None = None
    for member in read_members(path):
        if not isinstance(member, Member):
            yield member
            continue
        parts = SAMPLE_NAME.fullmatch(member.name)
        if parts is None or META_NAME.match(member.name) or PurePosixPath(member.name).name.startswith("."):
            continue
        key, suffix = parts[1], parts[2].lower()
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = _Sample(key)
        if suffix in sample.members:
            sample.twice.append(suffix)
        else:
            sample.members[suffix] = member
    if sample is not None:
        yield sample


class _Reader:
    """Reads one sample of an open shard."""

    def __init__(self, file: IO[bytes], shard: str, config: ShardsConfig, sample: _Sample) -> None:
        self._file = file
        self._shard = shard
        self._config = config
        self._sample = sample
        self._split: Split = "train"

    def clips(self, is_late: bool) -> Iterator[SourceRecord | Reject]:
        """A record for each span, or why there is none; `is_late` says that the shard had the key before."""
        try:
            if is_late:
                raise _UnusableError("out_of_order", "other samples are between its members")
            if self._sample.twice:
                raise _UnusableError("duplicate_member", f"several members .{', .'.join(self._sample.twice)}")
            document = self._json()
            media = self._media(document)
            self._split = self._find_split(document)
            audio_type = self._audio_type(document)
            spans = self._spans(document)
        except _UnusableError as error:
            yield self._reject(error)
            return
        for item in spans:
            try:
                start_s, end_s = _span(item)
                texts = tuple(self._texts(document, item, audio_type))
            except _UnusableError as error:
                yield self._reject(error)
                continue
            clip_id = f"{self._shard}/{self._sample.key}"
            clip_id += "" if item is WHOLE else f"#{start_s:.3f}-{end_s:.3f}"
            path = f"{self._shard}/{media.name}"
            yield ShardRecord(clip_id, path, self._split, texts, start_s, end_s, self._shard)

    def _reject(self, error: _UnusableError) -> Reject:
        return _reject(self._shard, self._sample.key, error.reason, error.detail, self._split)

    def _json(self) -> dict[str, Any]:
        """The content of the member .json, empty where there is none."""
        if "json" not in self._sample.members:
            return {}
        try:
            document = json.loads(self._bytes("json"))
        except (ValueError, RecursionError) as error:
            raise _UnusableError("bad_json", f".json: {error}") from error
        if not isinstance(document, dict):
            raise _UnusableError("bad_json", ".json is no object")
        return document

    def _bytes(self, suffix: str) -> bytes:
        member = self._sample.members[suffix]
        if member.size > TEXT_LIMIT:
            raise _UnusableError("too_large", f".{suffix} has {member.size:,} bytes, more than {TEXT_LIMIT:,}")
        try:
            return read_member(self._file, member)
        except OSError as error:
            raise _UnusableError("unreadable", f".{suffix}: {error.strerror}") from error

    def _media(self, document: dict[str, Any]) -> Member:
        """The video of the sample, else its sound."""
        for suffixes in (VIDEO_SUFFIXES, AUDIO_SUFFIXES):
            found = [m for suffix, m in self._sample.members.items() if PurePosixPath(f"_.{suffix}").suffix in suffixes]
            if len(found) > 1:
                raise _UnusableError("ambiguous", ", ".join(member.name for member in found))
            if found:
                return found[0]
        # video2dataset stores texts and JSON of what it couldn't download
        why = ": ".join(text for key in ("status", "error_message") if isinstance(text := document.get(key), str))
        raise _UnusableError("no_media", why or f"its members are .{', .'.join(self._sample.members)}")

    def _find_split(self, document: dict[str, Any]) -> Split:
        if self._config.split is None:
            return "train"
        values = look_up(document, self._config.split)
        if len(values) != 1 or values[0] not in SPLITS:
            raise _UnusableError("unknown_split", f"{self._config.split}: {_shorten(values)}")
        split: Split = values[0]
        return split

    def _audio_type(self, document: dict[str, Any]) -> AudioType | None:
        values = [] if self._config.audio_type is None else look_up(document, self._config.audio_type)
        if not values:
            return None
        if len(values) > 1 or values[0] not in get_args(AudioType):
            raise _UnusableError("unknown_audio_type", f"{self._config.audio_type}: {_shorten(values)}")
        audio_type: AudioType = values[0]
        return audio_type

    def _spans(self, document: dict[str, Any]) -> Sequence[Any]:
        """What states the spans, one by one; [WHOLE] where the file is the clip."""
        if self._config.spans is None or not _values(document, self._config.spans):
            return [WHOLE]
        spans = look_up(document, self._config.spans)
        if len(spans) == 2 and not any(isinstance(value, list | dict) for value in spans):
            return [spans]  # one span, not in a list
        if not spans:
            raise _UnusableError("bad_span", f"{self._config.spans} has none")
        return spans

    def _texts(self, document: dict[str, Any], span: Any, audio_type: AudioType | None) -> Iterator[Text]:
        """The texts of a span, each once for each audio type."""
        config = self._config
        typed: list[tuple[str, AudioType | None]] = [(key, audio_type) for key in config.captions]
        typed += [(key, "verbal") for key in config.verbal]
        typed += [(key, "nonverbal") for key in config.nonverbal]
        found = (Text(text, kind) for key, kind in typed for text in self._texts_at(key, document, span))
        return iter(dict.fromkeys(found))

    def _texts_at(self, key: str, document: dict[str, Any], span: Any) -> list[str]:
        if key.startswith("."):
            if key[1:] not in self._sample.members:
                return []
            try:
                return [self._bytes(key[1:]).decode("utf-8-sig")]
            except UnicodeDecodeError as error:
                raise _UnusableError("bad_text", f"{key} isn't UTF-8: {error.reason}") from error
        of_spans = f"{self._config.spans}."
        values = look_up(span, key.removeprefix(of_spans)) if key.startswith(of_spans) else look_up(document, key)
        return [value for value in values if isinstance(value, str)]


def look_up(tree: Any, key: str) -> list[Any]:
    """What is at `key` (`a.b`: at `b` in what is at `a`) of a JSON object, or of each object of a list; without nulls.

    A list counts as its items.
    """
    return _items(_values(tree, key))


def _values(tree: Any, key: str) -> list[Any]:
    values = [tree]
    for name in key.split("."):
        found = (value.get(name) for value in _items(values) if isinstance(value, dict))
        values = [value for value in found if value is not None]
    return values


def _items(values: Iterable[Any]) -> list[Any]:
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _span(stated: Any) -> tuple[float, float | None]:
    """Start and end in seconds of `[start, end]`, or of an object with these keys."""
    if stated is WHOLE:
        return WHOLE
    pair = [stated.get("start"), stated.get("end")] if isinstance(stated, dict) else stated
    if not isinstance(pair, list) or len(pair) != 2:
        raise _UnusableError("bad_span", f"neither start and end nor an object of these: {_shorten(stated)}")
    start_s, end_s = (_clock_seconds(value) for value in pair)
    if not 0 <= start_s < end_s < math.inf:
        raise _UnusableError("bad_span", f"{_shorten(pair[0])} to {_shorten(pair[1])}")
    return start_s, end_s


def _clock_seconds(value: Any) -> float:
    """Seconds of a number, or of a text such as `62.5`, `1:02.5` or `00:01:02.500`; NaN for what is neither."""
    parts = value.split(":") if isinstance(value, str) else [value]
    if len(parts) > 3:
        return math.nan
    return sum(parse_seconds(part) * 60**place for place, part in enumerate(reversed(parts)))


def _shorten(value: Any) -> str:
    """For a message; a value that is nested too deeply to be written has no text."""
    try:
        return str(value)[:80]
    except RecursionError:
        return "something deeply nested"
