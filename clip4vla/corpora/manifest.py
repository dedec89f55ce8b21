"""Stage `manifest`: records in, one Parquet file of the accepted and one of the rejected out.

accepted + rejected = read, always. Records pass through one after the other, and are read back the same way: what is
held of each is a hash of its clip id, to find duplicates (`HashSet`).
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clip4vla.corpora.base import Excerpt, ShardRecord
from clip4vla.corpora.media_index import MediaIndex, is_unicode, is_video
from clip4vla.records import Reject, SourceRecord, Text
from clip4vla.utils.files import atomic_directory
from clip4vla.utils.hashing import HashSet
from clip4vla.utils.progress import track

TEXTS = pa.list_(pa.struct([("text", pa.string()), ("audio_type", pa.string())]))
MANIFEST_SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("media", pa.string()),
        ("split", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("texts", TEXTS),
    ]
)
MANIFEST_FILE = "manifest.parquet"
GROUP = 10_000
"""Rows of a group in a Parquet file."""
LISTED = 5
"""The greatest number of rejected records that are listed one by one."""
REJECTS_SCHEMA = pa.schema([(name, pa.string()) for name in ("clip_id", "media", "split", "reason", "detail")])


@dataclass(frozen=True)
class ManifestSummary:
    """How a manifest came out."""

    accepted: int
    rejected: Counter[str]
    """By reason."""
    examples: tuple[Reject, ...] = ()
    """The first of the rejected, LISTED at most."""

    def summary(self) -> str:
        """For a person: a line of counts, then the examples."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.rejected.most_common())
        counts = f"{self.accepted:,} accepted, {self.rejected.total():,} rejected" + (
            f" ({reasons})" if reasons else ""
        )
        lines = [
            f"  {reject.media or reject.clip_id or '?'}: {reject.reason}, {reject.detail}" for reject in self.examples
        ]
        left = self.rejected.total() - len(lines)
        return "\n".join([counts, *lines, *([f"  and {left:,} more, in rejects.parquet"] if left else [])])

    def check(self, max_reject_fraction: float) -> None:
        """Raise ValueError when nothing was accepted or more than `max_reject_fraction` was rejected."""
        read = self.accepted + self.rejected.total()
        if self.accepted == 0:
            raise ValueError(f"nothing was accepted: {self.summary()}")
        if self.rejected.total() > max_reject_fraction * read:
            raise ValueError(
                f"{self.summary()}\nmore than {max_reject_fraction:.1%} rejected: repair these or leave them out of "
                "the annotations, or raise clips.max_reject_fraction in params.yaml"
            )


def write_manifest(entries: Iterable[SourceRecord | Reject], media: Path, out: Path) -> ManifestSummary:
    """Write `out/manifest.parquet` and `out/rejects.parquet`; `media` in the manifest is relative to `media`.

    A record is rejected when its media file is `missing` or `ambiguous`, its clip id a `duplicate`, when it has
    `no_text`, or when it is no valid Unicode (`bad_text`; `bad_name` for the name of its file). An excerpt whose media
    is already cut has no span left.

    Raises:
        ValueError: there is no directory `media`, or what `entries` raises.
    """
    files = MediaIndex(media)
    accepted = 0
    rejected: Counter[str] = Counter()
    examples: list[Reject] = []
    seen = HashSet()
    with (
        atomic_directory(out) as directory,
        _Table(directory / MANIFEST_FILE, MANIFEST_SCHEMA) as manifest,
        _Table(directory / "rejects.parquet", REJECTS_SCHEMA) as rejects,
    ):
        for entry in track(entries, None, "records"):
            checked = entry if isinstance(entry, Reject) else _check(entry, files, seen)
            if isinstance(checked, Reject):
                rejected[checked.reason] += 1
                examples += [checked] if len(examples) < LISTED else []
                rejects.add(_reject_row(checked))
            else:
                seen.add(checked.clip_id)
                accepted += 1
                manifest.add(_row(checked))
    return ManifestSummary(accepted, rejected, tuple(examples))


class _Table:
    """A Parquet file to which rows are added; only a group of them is held in memory."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema)
        self._schema = schema
        self._rows: list[dict[str, Any]] = []

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == GROUP:
            self._flush()

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows.clear()

    def __enter__(self) -> "_Table":
        return self

    def __exit__(self, *error: object) -> None:
        self._flush()
        self._writer.close()


def _row(record: SourceRecord) -> dict[str, Any]:
    texts = [{"text": text.text, "audio_type": text.audio_type} for text in record.texts]
    return {**vars(record), "texts": texts}


def _reject_row(reject: Reject) -> dict[str, str]:
    """What is no valid Unicode is written with question marks."""
    return {key: value.encode(errors="replace").decode() for key, value in asdict(reject).items()}


def _check(record: SourceRecord, files: MediaIndex, seen: HashSet) -> SourceRecord | Reject:
    def reject(reason: str, detail: str) -> Reject:
        return Reject(record.clip_id, record.media, record.split, reason, detail)

    texts = tuple(Text(text.text.strip(), text.audio_type) for text in record.texts if text.text.strip())
    if not all(is_unicode(string) for string in (record.clip_id, record.media, *(text.text for text in texts))):
        return reject("bad_text", "half a surrogate pair")
    if record.clip_id in seen:
        return reject("duplicate", "another record has this clip id")
    if not texts:
        return reject("no_text", "no sentence about it")
    cut = _find_cut(record, files)
    found = cut or _find(record, files)
    if not found:
        return reject("missing", f"no media file {record.media}[.*]")
    if len(found) > 1:
        return reject("ambiguous", ", ".join(found))
    if not is_unicode(found[0]):
        return reject("bad_name", "the name of its file isn't UTF-8")
    span = (0.0, None) if cut else (record.start_s, record.end_s)
    return SourceRecord(record.clip_id, found[0], record.split, texts, *span)


def _find(record: SourceRecord, files: MediaIndex) -> list[str]:
    """The files that it can mean; a member that its adapter has seen is there if the shard is."""
    if isinstance(record, ShardRecord):
        return [record.media] if record.shard in files else []
    return files.find(record.media)


def _find_cut(record: SourceRecord, files: MediaIndex) -> list[str]:
    """The file that is just this excerpt, if there is one: a video rather than the sound of it."""
    names = record.cut_names if isinstance(record, Excerpt) else ()
    found = [paths for name in names if (paths := files.find(name))]
    return next((paths for paths in found if is_video(paths[0])), found[0] if found else [])


def write_rejects(rejects: Iterable[Reject], path: Path) -> tuple[Counter[str], tuple[Reject, ...]]:
    """Write a rejects table; how many there are by reason, and the first of them, LISTED at most."""
    reasons: Counter[str] = Counter()
    examples: list[Reject] = []
    with _Table(path, REJECTS_SCHEMA) as table:
        for reject in rejects:
            table.add(_reject_row(reject))
            reasons[reject.reason] += 1
            examples += [reject] if len(examples) < LISTED else []
    return reasons, tuple(examples)


def read_manifest(path: Path) -> Iterator[SourceRecord]:
    """Yield the accepted records of `path`, in their order; a group of them is held in memory.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        with pq.ParquetFile(path) as file:
            if not file.schema_arrow.equals(MANIFEST_SCHEMA):
                raise ValueError(f"its columns are {', '.join(file.schema_arrow.names)}")
            for batch in file.iter_batches(GROUP):
                for row in batch.to_pylist():
                    yield SourceRecord(**(row | {"texts": tuple(Text(**text) for text in row["texts"])}))
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path} can't be read as a manifest: {error}") from error
