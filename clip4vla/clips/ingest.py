"""Stage `clips`: a manifest in, one Lance data set per split out, and the rejects that decoding found.

Processes decode chunks of the manifest and write Lance fragments; one commit makes them visible. A killed run
continues after the fragments that are already there. The clips of a tar file are one chunk: one process reads it.
"""

import json
import multiprocessing
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from itertools import groupby
from pathlib import Path

import pyarrow as pa

from clip4vla.clips import format as row_format
from clip4vla.clips.format import SCHEMA
from clip4vla.config import AudioConfig, ClipsConfig
from clip4vla.corpora.manifest import LISTED, ManifestSummary, read_manifest, write_rejects
from clip4vla.media import decode, shard, source
from clip4vla.records import SPLITS, Reject, SourceRecord
from clip4vla.utils.files import file_state, write_json
from clip4vla.utils.hashing import hash_bytes
from clip4vla.utils.progress import track

CHUNK = 64
"""Clips of a fragment."""
CLUSTER_ANSWERS_S = 20
os.environ.setdefault("LANCE_LOG", "error")  # each worker would else warn that the data set is new


@dataclass(frozen=True)
class Chunk:
    """The unit of work: records of one split that become one fragment, or several where they are all of one shard."""

    name: str
    split: str
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

    What a run that was killed, or had too many rejects, has decoded is kept for the next one; only chunks with rejects,
    or with media that have changed, are decoded again.

    Raises:
        ValueError: more than `clips.max_reject_fraction` was rejected; `out` is then left as it was.
    """
    partial = out.with_name(f".{out.name}.partial")
    _begin(partial, _fingerprint(manifest, clips, audio))
    spec = IngestSpec(media.resolve(), partial.resolve(), clips, audio.sample_rate)
    records = read_manifest(manifest)
    chunks = list(_chunks(records, spec.media))
    waiting = [chunk for chunk in chunks if not _is_done(spec, chunk)]
    _run(spec, waiting, len(records))
    result = _commit(spec, chunks)
    result.check(clips.max_reject_fraction)
    shutil.rmtree(out, ignore_errors=True)
    partial.replace(out)
    _tidy(out)
    return result


def _fingerprint(manifest: Path, clips: ClipsConfig, audio: AudioConfig) -> str:
    """What the fragments depend on; a partial run with another one starts from the beginning."""
    settings = clips.model_dump_json(exclude={"workers", "dask", "max_reject_fraction", "limits"}) + str(
        audio.sample_rate
    )
    code = [Path(module.__file__).read_bytes() for module in (row_format, decode, shard, source) if module.__file__]
    return hash_bytes([manifest.read_bytes(), settings.encode(), *code])


def _begin(partial: Path, fingerprint: str) -> None:
    mark = partial / "fingerprint"
    if mark.exists() and mark.read_text() == fingerprint:
        return
    shutil.rmtree(partial, ignore_errors=True)
    (partial / "chunks").mkdir(parents=True)
    mark.write_text(fingerprint)


def _chunks(records: list[SourceRecord], media: Path) -> Iterator[Chunk]:
    """The clips of a shard that follow one another, or CHUNK clips of files."""
    for split in SPLITS:
        of_split = [record for record in records if record.split == split]
        done = 0
        for of_shard, group in groupby(of_split, lambda record: shard.find_shard(media / record.media)):
            together = tuple(group)
            size = CHUNK if of_shard is None else len(together)
            for start in range(0, len(together), size):
                yield Chunk(f"{split}-{done + start:09d}", split, together[start : start + size])
            done += len(together)


def _note(spec: IngestSpec, chunk: Chunk) -> Path:
    return spec.directory / "chunks" / f"{chunk.name}.json"


def _is_done(spec: IngestSpec, chunk: Chunk) -> bool:
    """Whether an earlier run has stored all of the chunk, from the media that are there now."""
    path = _note(spec, chunk)
    if not path.exists():
        return False
    note = json.loads(path.read_text(encoding="utf-8"))
    return not note["rejects"] and note["media"] == _media_states(spec, chunk)


def _media_states(spec: IngestSpec, chunk: Chunk) -> dict[str, list[int] | None]:
    """Size and moments of change of each media file, or of its shard, None for those that can't be found."""
    paths = [spec.media / record.media for record in chunk.records]
    files = {shard.find_shard(path) or path for path in paths}
    return {path.relative_to(spec.media).as_posix(): file_state(path) for path in sorted(files)}


def _run(spec: IngestSpec, chunks: list[Chunk], records: int) -> None:
    left = sum(len(chunk.records) for chunk in chunks)
    if left < records:
        print(f"continuing: {records - left:,} of {records:,} clips are already there", file=sys.stderr)
    for _ in track((clip for count in _decode_all(spec, chunks) for clip in range(count)), left, "clips"):
        pass


def _decode_all(spec: IngestSpec, chunks: list[Chunk]) -> Iterator[int]:
    """Decode the chunks, on a Dask cluster, by processes or, where one is enough, here; yield the clips of each."""
    if spec.clips.dask:
        yield from _decode_on_cluster(spec.clips.dask, spec, chunks)
        return
    workers = min(spec.clips.workers or os.cpu_count() or 1, len(chunks))
    if workers <= 1:
        yield from (ingest_chunk(spec, chunk) for chunk in chunks)
        return
    # Lance's threads do not survive a fork
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(ingest_chunk, [spec] * len(chunks), chunks)


def _decode_on_cluster(address: str, spec: IngestSpec, chunks: list[Chunk]) -> Iterator[int]:
    """Decode the chunks on the workers of a Dask cluster, which try a chunk again when one of them dies.

    Raises:
        ValueError: Dask isn't installed, or no cluster answers at `address`.
    """
    try:
        from distributed import Client, as_completed
    except ImportError as error:
        raise ValueError("clips.dask needs Dask: `pip install 'clip4vla[dask]'`") from error
    try:
        client = Client(address, timeout=CLUSTER_ANSWERS_S)
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask cluster answers at clips.dask {address!r}: {error}") from error
    with client:
        for future in as_completed([client.submit(ingest_chunk, spec, chunk, pure=False) for chunk in chunks]):
            yield future.result()


def ingest_chunk(spec: IngestSpec, chunk: Chunk) -> int:
    """Decode one chunk, write its fragments, then its note, which marks it as complete; return the number of clips."""
    media = _media_states(spec, chunk)  # before they are read: a file that changes meanwhile is read again
    fragments: list[dict[str, object]] = []
    rejects: list[Reject] = []
    for start in range(0, len(chunk.records), CHUNK):  # no more is held in memory
        rows = []
        for record in chunk.records[start : start + CHUNK]:
            try:
                rows.append(_ingest_clip(record, spec))
            except source.MediaError as error:
                rejects.append(Reject(record.clip_id, record.media, record.split, error.reason, error.detail))
        fragments += _write_fragments(spec, chunk.split, rows)
    note = {
        "fragments": fragments,
        "rows": len(chunk.records) - len(rejects),
        "rejects": [asdict(reject) for reject in rejects],
        "media": media,
    }
    write_json(_note(spec, chunk), note)
    return len(chunk.records)


def _write_fragments(spec: IngestSpec, split: str, rows: list[dict[str, object]]) -> list[dict[str, object]]:
    import lance

    if not rows:
        return []
    table = pa.Table.from_pylist(rows, SCHEMA)
    return [f.to_json() for f in lance.fragment.write_fragments(table, _dataset(spec, split), schema=SCHEMA)]


def _dataset(spec: IngestSpec, split: str) -> str:
    return str(spec.directory / f"{split}.lance")


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


def _commit(spec: IngestSpec, chunks: list[Chunk]) -> ManifestSummary:
    """Make the fragments visible, in the manifest's order, and write the rejects."""
    import lance

    notes = {chunk: json.loads(_note(spec, chunk).read_text(encoding="utf-8")) for chunk in chunks}
    for split in SPLITS:
        stored = [f for chunk, note in notes.items() if chunk.split == split for f in note["fragments"]]
        if stored:
            fragments = [lance.FragmentMetadata.from_json(json.dumps(fragment)) for fragment in stored]
            dataset = lance.LanceDataset.commit(
                _dataset(spec, split), lance.LanceOperation.Overwrite(SCHEMA, fragments)
            )
            # files of chunks that were killed half-way or decoded again belong to no version
            dataset.cleanup_old_versions(timedelta(0), delete_unverified=True)
    rejects = [Reject(**reject) for note in notes.values() for reject in note["rejects"]]
    write_rejects(rejects, spec.directory / "rejects.parquet")
    reasons = Counter(reject.reason for reject in rejects)
    return ManifestSummary(sum(note["rows"] for note in notes.values()), reasons, tuple(rejects[:LISTED]))


def _tidy(out: Path) -> None:
    """Remove what only a resumed run needs."""
    shutil.rmtree(out / "chunks")
    (out / "fingerprint").unlink()
