"""Stage `manifest`: records in, one Parquet file of the accepted and one of the rejected out.

accepted + rejected = read, always.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clip4vla.atomic import atomic_directory
from clip4vla.records import Reject, SourceRecord, Text

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
REJECTS_SCHEMA = pa.schema([(name, pa.string()) for name in ("clip_id", "media", "split", "reason", "detail")])


@dataclass(frozen=True)
class Accepted:
    """How a manifest came out."""

    accepted: int
    rejected: Counter[str]
    """By reason."""

    def summary(self) -> str:
        """One line for a person."""
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in self.rejected.most_common())
        return f"{self.accepted:,} accepted, {self.rejected.total():,} rejected" + (f" ({reasons})" if reasons else "")

    def check(self, max_reject_fraction: float) -> None:
        """Raise ValueError when nothing was accepted or more than `max_reject_fraction` was rejected."""
        read = self.accepted + self.rejected.total()
        if self.accepted == 0 or self.rejected.total() > max_reject_fraction * read:
            raise ValueError(f"{self.summary()}: more than {max_reject_fraction:.1%} rejected, or nothing accepted")


def write_manifest(entries: Iterable[SourceRecord | Reject], media: Path, out: Path) -> Accepted:
    """Write `out/manifest.parquet` and `out/rejects.parquet`; `media` in the manifest is relative to `media`.

    A record is rejected when its media file is `missing`, its clip id a `duplicate`, or when it has `no_text`.
    """
    found = _index(media)
    accepted: list[SourceRecord] = []
    rejects: list[Reject] = []
    seen: set[str] = set()
    for entry in entries:
        checked = entry if isinstance(entry, Reject) else _check(entry, found, seen)
        if isinstance(checked, Reject):
            rejects.append(checked)
        else:
            seen.add(checked.clip_id)
            accepted.append(checked)
    with atomic_directory(out) as directory:
        pq.write_table(
            pa.Table.from_pylist([asdict(r) for r in accepted], MANIFEST_SCHEMA), directory / "manifest.parquet"
        )
        write_rejects(rejects, directory / "rejects.parquet")
    return Accepted(len(accepted), Counter(reject.reason for reject in rejects))


def _index(media: Path) -> dict[str, str]:
    """Relative path of every file under `media`, by that path and by the path without its suffix."""
    paths = sorted(p.relative_to(media).as_posix() for p in media.rglob("*") if p.is_file())
    return {Path(p).with_suffix("").as_posix(): p for p in reversed(paths)} | {p: p for p in paths}


def _check(record: SourceRecord, found: dict[str, str], seen: set[str]) -> SourceRecord | Reject:
    def reject(reason: str, detail: str) -> Reject:
        return Reject(record.clip_id, record.media, record.split, reason, detail)

    if record.clip_id in seen:
        return reject("duplicate", "another record has this clip id")
    texts = tuple(Text(text.text.strip(), text.audio_type) for text in record.texts if text.text.strip())
    if not texts:
        return reject("no_text", "no sentence about it")
    if record.media not in found:
        return reject("missing", f"no media file {record.media}[.*]")
    return SourceRecord(record.clip_id, found[record.media], record.split, texts, record.start_s, record.end_s)


def write_rejects(rejects: list[Reject], path: Path) -> None:
    """Write a rejects table."""
    pq.write_table(pa.Table.from_pylist([asdict(r) for r in rejects], REJECTS_SCHEMA), path)


def read_manifest(path: Path) -> list[SourceRecord]:
    """The accepted records of `path`, in their order."""
    rows = pq.read_table(path).to_pylist()
    return [SourceRecord(**(row | {"texts": tuple(Text(**text) for text in row["texts"])})) for row in rows]
