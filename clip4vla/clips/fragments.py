"""From the files of finished chunks to data sets of few, large fragments: random reads of many small ones are slow.

In: chunks of clips, each some small Lance files and a note of what they hold. Out: a Lance data set for each split,
whose fragments have the chunks of RECORDS records each. A fragment is written from its chunks one after the other; then
its own note, which marks it as complete, and only then the files of its chunks are removed. So a run that is killed
repeats the fragments that were being written, and no more than they need twice their space on the disk.
"""

import json
import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa

from clip4vla.clips.format import SCHEMA, STORAGE
from clip4vla.records import SPLITS, Split
from clip4vla.utils.files import read_json, sync, write_json

RECORDS = 128_000
"""Records of a fragment: with up to a fifth of them rejected it has 100,000 clips."""
MOST_ROWS, MOST_BYTES = 1 << 30, 1 << 50
"""More than a fragment ever has: else Lance divides it. Of more rows than 2^31 Lance makes a file for each batch."""
os.environ.setdefault("LANCE_LOG", "error")  # each worker would else warn that the data set is new


@dataclass(frozen=True)
class Group:
    """The chunks that become one fragment."""

    split: Split
    starts: Sequence[int]
    """Of each chunk, the place of its first record among those of the split."""

    @property
    def name(self) -> str:
        """That of its first chunk."""
        return chunk_name(self.split, self.starts[0])

    @property
    def chunks(self) -> Iterator[str]:
        """The names of its chunks."""
        return (chunk_name(self.split, start) for start in self.starts)


def chunk_name(split: Split, start: int) -> str:
    """The name of the chunk whose first record is number `start` of `split`."""
    return f"{split}-{start:09d}"


def plan(starts: Mapping[Split, Sequence[int]], records: Mapping[str, int]) -> list[Group]:
    """The fragments of each split, in order; the chunks that are left over belong to the last one.

    Args:
        starts: of the chunks of each split, see `Group`.
        records: of each split.
    """
    groups = []
    for split, of_split in starts.items():
        last = max(1, records[split] // RECORDS) - 1
        for _, together in groupby(of_split, partial(_number, last)):
            groups.append(Group(split, array("q", together)))
    return groups


def _number(last: int, start: int) -> int:
    """Which fragment the chunk that begins at `start` belongs to."""
    return min(start // RECORDS, last)


def chunk_note(directory: Path, chunk: str) -> Path:
    """Where what a chunk holds is noted: its `fragments` as Lance describes them, and more that ingestion adds."""
    return directory / "chunks" / f"{chunk}.json"


def write_rows(directory: Path, split: Split, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Store rows of a chunk; what its note must say of them."""
    import lance

    if not rows:
        return []
    table = pa.Table.from_pylist(list(rows), SCHEMA)
    written = lance.fragment.write_fragments(
        table, str(_chunk_files(directory, split)), schema=SCHEMA, data_storage_version=STORAGE
    )
    return [fragment.to_json() for fragment in written]


def is_written(directory: Path, group: Group) -> bool:
    """Whether the fragment is complete; the files of its chunks may be gone then."""
    return _note(directory, group).exists()


def forget(directory: Path, group: Group) -> None:
    """Have the fragment written again, from chunks that are decoded again."""
    for chunk in group.chunks:
        chunk_note(directory, chunk).unlink(missing_ok=True)
    _note(directory, group).unlink()


def write_fragment(directory: Path, group: Group) -> int:
    """Copy the chunks of a group, in their order, into one fragment; the number of its clips.

    Held in memory is one file of a chunk, and what Lance collects for a page of each column (8 MB).
    """
    import lance

    sources = [_chunk_files(directory, group.split) / "data" / name for name in _file_names(directory, group)]
    data_set = _data_set(directory, group.split)
    written = []
    if sources:
        rows = pa.RecordBatchReader.from_batches(SCHEMA, _read(sources))
        written = lance.fragment.write_fragments(
            rows,
            str(data_set),
            schema=SCHEMA,
            max_rows_per_file=MOST_ROWS,
            max_bytes_per_file=MOST_BYTES,
            data_storage_version=STORAGE,
        )
    for fragment in written:
        for file in fragment.files:
            sync(data_set / "data" / file.path)
    count = sum(fragment.physical_rows for fragment in written)
    _note(directory, group).parent.mkdir(exist_ok=True)
    write_json(_note(directory, group), {"fragments": [fragment.to_json() for fragment in written]})
    _remove(sources)
    return count


def commit(directory: Path, groups: Sequence[Group]) -> None:
    """Make the fragments visible, in their order, as one data set for each split; leave no other file in it."""
    import lance

    for split in SPLITS:
        notes = [_read_note(_note(directory, group)) for group in groups if group.split == split]
        stored = [lance.FragmentMetadata.from_json(json.dumps(f)) for note in notes for f in note["fragments"]]
        if stored:
            data_set = lance.LanceDataset.commit(
                str(_data_set(directory, split)), lance.LanceOperation.Overwrite(SCHEMA, stored)
            )
            # files of fragments that were killed half-way or written again belong to no version
            data_set.cleanup_old_versions(timedelta(0), delete_unverified=True)


def _file_names(directory: Path, group: Group) -> Iterator[str]:
    for chunk in group.chunks:
        for fragment in _read_note(chunk_note(directory, chunk))["fragments"]:
            yield from (file["path"] for file in fragment["files"])


def _read(files: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    from lance.file import LanceFileReader

    for file in files:
        for batch in LanceFileReader(str(file)).read_all().to_batches():
            yield pa.RecordBatch.from_arrays(batch.columns, schema=SCHEMA)


def _remove(files: Sequence[Path]) -> None:
    for file in files:
        file.unlink()


def _read_note(path: Path) -> dict[str, Any]:
    note: dict[str, Any] = read_json(path)
    return note


def _note(directory: Path, group: Group) -> Path:
    return directory / "fragments" / f"{group.name}.json"


def _data_set(directory: Path, split: Split) -> Path:
    return directory / f"{split}.lance"


def _chunk_files(directory: Path, split: Split) -> Path:
    return directory / "chunks" / f"{split}.lance"
