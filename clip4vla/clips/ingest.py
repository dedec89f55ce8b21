"""Stage `clips`: a manifest in, one Lance data set per split out, and the rejects that decoding found.

Processes decode chunks of the manifest, each into a small file of its own; the files of many chunks then become one
fragment (`fragments`), and one commit makes the fragments visible. A killed run continues after the chunks and
fragments that are already there. The clips of a tar file are one chunk: one process reads it. Records are read one
after the other: what is held of all of them is where each chunk begins, and which an earlier run has finished.
"""

import shutil
import sys
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from clip4vla.clips import format as row_format
from clip4vla.clips import fragments
from clip4vla.clips.fragments import Group, chunk_name, chunk_note
from clip4vla.clips.workers import run_all
from clip4vla.config import AudioConfig, ClipsConfig
from clip4vla.corpora.manifest import ManifestSummary, read_manifest, write_rejects
from clip4vla.media import decode, shard, source
from clip4vla.records import SPLITS, Reject, SourceRecord, Split
from clip4vla.utils.files import file_state, read_json, write_json
from clip4vla.utils.hashing import hash_bytes, read_pieces
from clip4vla.utils.progress import track

LAYOUT = b"2"
"""Of what an unfinished run leaves; one of another layout starts from the beginning."""
CHUNK = 64
"""Clips of a chunk, where they are not in a shard, and of each file that is written of it."""


@dataclass(frozen=True)
class Chunk:
    """The unit of work: records of one split, all of one shard or of none, and what a killed run repeats."""

    name: str
    split: Split
    records: tuple[SourceRecord, ...]


@dataclass(frozen=True)
class IngestSpec:
    """What every chunk is decoded with."""

    media: Path
    directory: Path
    """Where the data sets and the notes of finished chunks are written until everything is there."""
    clips: ClipsConfig
    sample_rate: int


def ingest(manifest: Path, media: Path, out: Path, clips: ClipsConfig, audio: AudioConfig) -> ManifestSummary:
    """Decode every record of `manifest` into `out/SPLIT.lance` and `out/rejects.parquet`.

    What a run that was killed has decoded is kept for the next one; only chunks whose media have changed are decoded
    again, and after a run that had too many rejects those with rejects.

    Raises:
        ValueError: more than `clips.max_reject_fraction` was rejected; `out` is then left as it was.
    """
    unfinished = out.with_name(f".{out.name}.partial")
    _begin(unfinished, _fingerprint(manifest, clips, audio))
    spec = IngestSpec(media.resolve(), unfinished.resolve(), clips, audio.sample_rate)
    survey = _survey(spec, manifest)
    groups = fragments.plan(survey.starts, survey.records)
    _forget_changed(spec, groups, survey.done)
    _decode(spec, manifest, survey)
    result = _write_rejects(spec, groups, survey.records.total())
    _check(spec, groups, result)
    _write_fragments(spec, groups)
    fragments.commit(spec.directory, groups)
    shutil.rmtree(out, ignore_errors=True)
    unfinished.replace(out)
    _tidy(out)
    return result


def _fingerprint(manifest: Path, clips: ClipsConfig, audio: AudioConfig) -> str:
    """What the fragments depend on; a partial run with another one starts from the beginning."""
    settings = clips.model_dump_json(exclude={"workers", "dask", "max_reject_fraction", "limits"}) + str(
        audio.sample_rate
    )
    code = [Path(module.__file__).read_bytes() for module in (row_format, decode, shard, source) if module.__file__]
    return hash_bytes([*read_pieces(manifest), settings.encode(), *code, LAYOUT])


def _begin(partial: Path, fingerprint: str) -> None:
    mark = partial / "fingerprint"
    if mark.exists() and mark.read_text() == fingerprint:
        return
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "chunks").mkdir(parents=True)
    mark.write_text(fingerprint)


def _chunks(records: Iterator[SourceRecord], media: Path) -> Iterator[Chunk]:
    """The records of each split in their order: those of a shard that follow one another, or CHUNK of files."""
    waiting: dict[Split, list[SourceRecord]] = {split: [] for split in SPLITS}
    shards: dict[Split, Path | None] = dict.fromkeys(SPLITS)
    starts = dict.fromkeys(SPLITS, 0)

    def cut(split: Split) -> Chunk:
        chunk = Chunk(chunk_name(split, starts[split]), split, tuple(waiting[split]))
        starts[split] += len(chunk.records)
        waiting[split].clear()
        return chunk

    for record in records:
        split, of_shard = record.split, shard.find_shard(media / record.media)
        if waiting[split] and (of_shard != shards[split] or (of_shard is None and len(waiting[split]) == CHUNK)):
            yield cut(split)
        shards[split] = of_shard
        waiting[split].append(record)
    yield from (cut(split) for split in SPLITS if waiting[split])


@dataclass
class _Survey:
    """What one pass over the manifest finds."""

    starts: "dict[Split, array[int]]"
    """Where each chunk begins among the records of its split."""
    records: Counter[str]
    """By split."""
    done: dict[str, int]
    """The chunks that an earlier run has finished, each with the number of its records."""

    @property
    def chunks(self) -> int:
        """How many there are."""
        return sum(map(len, self.starts.values()))


def _survey(spec: IngestSpec, manifest: Path) -> _Survey:
    found = _Survey({split: array("q") for split in SPLITS}, Counter(), {})
    for chunk in _chunks(track(read_manifest(manifest), None, "records examined"), spec.media):
        found.starts[chunk.split].append(found.records[chunk.split])
        found.records[chunk.split] += len(chunk.records)
        if _is_done(spec, chunk):
            found.done[chunk.name] = len(chunk.records)
    return found


def _forget_changed(spec: IngestSpec, groups: Sequence[Group], done: dict[str, int]) -> None:
    """Have all chunks of a fragment decoded again where the media of one have changed: their files are gone."""
    for group in groups:
        if fragments.is_written(spec.directory, group) and not done.keys() >= set(group.chunks):
            fragments.forget(spec.directory, group)
            for chunk in group.chunks:
                done.pop(chunk, None)


def _is_done(spec: IngestSpec, chunk: Chunk) -> bool:
    """Whether an earlier run has stored all of the chunk, from the media that are there now and within the limits."""
    path = chunk_note(spec.directory, chunk.name)
    if not path.exists():
        return False
    note = _read_note(path)
    return note["media"] == _media_states(spec, chunk) and (not note["rejects"] or note["limits"] == _limits(spec))


def _read_note(path: Path) -> dict[str, Any]:
    note: dict[str, Any] = read_json(path)
    return note


def _limits(spec: IngestSpec) -> dict[str, Any]:
    return spec.clips.limits.model_dump(mode="json")


def _media_states(spec: IngestSpec, chunk: Chunk) -> dict[str, list[int] | None]:
    """Size and moments of change of each media file, or of its shard, None for those that can't be found."""
    paths = [spec.media / media for media in {record.media for record in chunk.records}]
    files = {shard.find_shard(path) or path for path in paths}
    return {path.relative_to(spec.media).as_posix(): file_state(path) for path in sorted(files)}


def _decode(spec: IngestSpec, manifest: Path, survey: _Survey) -> None:
    records, done = survey.records.total(), survey.done
    left = records - sum(done.values())
    if done:
        print(f"continuing: {records - left:,} of {records:,} clips are already there", file=sys.stderr)
    chunks = _chunks(read_manifest(manifest), spec.media) if left else iter(())
    waiting = (chunk for chunk in chunks if chunk.name not in done)
    counts = run_all(spec.clips, partial(ingest_chunk, spec), waiting, survey.chunks - len(done))
    for _ in track((clip for count in counts for clip in range(count)), left, "clips"):
        pass


def ingest_chunk(spec: IngestSpec, chunk: Chunk) -> int:
    """Decode one chunk, write its files, then its note, which marks it as complete; return the number of clips."""
    media = _media_states(spec, chunk)  # before they are read: a file that changes meanwhile is read again
    written: list[dict[str, Any]] = []
    rejects: list[Reject] = []
    for start in range(0, len(chunk.records), CHUNK):  # no more is held in memory
        rows = []
        for record in chunk.records[start : start + CHUNK]:
            try:
                rows.append(_ingest_clip(record, spec))
            except source.MediaError as error:
                rejects.append(Reject(record.clip_id, record.media, record.split, error.reason, error.detail))
        written += fragments.write_rows(spec.directory, chunk.split, rows)
    note = {
        "fragments": written,
        "rejects": [asdict(reject) for reject in rejects],
        "limits": _limits(spec) if rejects else None,
        "media": media,
    }
    write_json(chunk_note(spec.directory, chunk.name), note)
    return len(chunk.records)


def _ingest_clip(record: SourceRecord, spec: IngestSpec) -> dict[str, object]:
    span = decode.decode(
        spec.media / record.media,
        record.start_s,
        record.end_s,
        frames=spec.clips.frames,
        short_side=spec.clips.size,
        sample_rate=spec.sample_rate,
        max_sound_s=spec.clips.max_seconds,
        limits=spec.clips.limits,
    )
    share = None
    if spec.clips.verbal_above is not None and span.audio is not None:
        from clip4vla.clips.speech import label, speech_share

        share = speech_share(span.audio, spec.sample_rate)
        record = replace(record, texts=label(record.texts, share, spec.clips.verbal_above))
    return row_format.encode_row(record, span, spec.clips.jpeg_quality, share)


def _write_rejects(spec: IngestSpec, groups: Sequence[Group], records: int) -> ManifestSummary:
    """Write what the notes of all chunks say was rejected, in the manifest's order by split."""
    notes = (_read_note(chunk_note(spec.directory, chunk)) for group in groups for chunk in group.chunks)
    rejects = (Reject(**reject) for note in notes for reject in note["rejects"])
    reasons, examples = write_rejects(rejects, spec.directory / "rejects.parquet")
    return ManifestSummary(records - reasons.total(), reasons, examples)


def _check(spec: IngestSpec, groups: Sequence[Group], result: ManifestSummary) -> None:
    """Raise ValueError where too much was rejected; the next run tries it again."""
    try:
        result.check(spec.clips.max_reject_fraction)
    except ValueError:
        for note in (chunk_note(spec.directory, chunk) for group in groups for chunk in group.chunks):
            if _read_note(note)["rejects"]:
                note.unlink()
        raise


def _write_fragments(spec: IngestSpec, groups: Sequence[Group]) -> None:
    """Copy the chunks into fragments, but for those that an earlier run has written."""
    waiting = [group for group in groups if not fragments.is_written(spec.directory, group)]
    written = run_all(spec.clips, partial(fragments.write_fragment, spec.directory), waiting, len(waiting))
    for _ in track(written, len(waiting), "fragments"):
        pass


def _tidy(out: Path) -> None:
    """Remove what only a resumed run needs."""
    shutil.rmtree(out / "chunks")
    shutil.rmtree(out / "fragments")
    (out / "fingerprint").unlink()
