"""Random access to stored clips.

In: the paths of Lance data sets, or their addresses in an object store. Out: clips by index, in any order. To open them
takes neither time nor memory that grows with their clips.
"""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip4vla.clips.format import Clip, decode_row
from clip4vla.utils.files import atomic_file
from clip4vla.utils.hashing import hash_text, hash_to_int64

COLUMNS = ["clip_id", "frames", "audio", "channels", "texts"]
CACHED_IDS = 100_000


@dataclass(frozen=True)
class CaptionIds:
    """A set of captions, by their ids."""

    ids: NDArray[np.int64]
    """(N,) in order."""

    def __len__(self) -> int:
        return len(self.ids)

    def __contains__(self, caption: object) -> bool:
        wanted = caption_id(str(caption))
        place = int(self.ids.searchsorted(wanted))
        return place < len(self.ids) and int(self.ids[place]) == wanted


@lru_cache(maxsize=CACHED_IDS)
def caption_id(caption: str) -> int:
    """The id of a caption: equal for equal captions, in every process."""
    return hash_to_int64(caption)


class ClipDataset:
    """Random access to the clips of one or several Lance data sets, one after the other.

    Opened on first use, so that it can be sent to a worker process.

    Args:
        paths: of the data sets; a text such as `s3://bucket/clips/train.lance` is an address, from which Lance reads
            by the environment's `AWS_...` (docs/data.md).
        min_words: clips without a caption of as many words are left out.
        found: a directory for what is found by reading all captions, where `min_words` or `shared_captions` need that:
            it is read once, and other processes map what was found into their memory.

    Raises:
        ValueError: there is no path, or no data set at one; of an address that is known when it is first read.
    """

    def __init__(self, paths: Sequence[Path | str], min_words: int = 0, found: Path | None = None) -> None:
        missing = [str(path) for path in paths if "://" not in str(path) and not Path(path).is_dir()]
        if missing or not paths:
            raise ValueError(f"no clips at {', '.join(missing) or 'all'}: run `dvc repro clips` first")
        self.paths = tuple(paths)
        self.min_words = min_words
        self.found = found

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "min_words": self.min_words, "found": self.found}

    @cached_property
    def _datasets(self) -> list[Any]:
        return [_open(str(path)) for path in self.paths]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Clips in each data set."""
        if not self.min_words:
            return tuple(dataset.count_rows() for dataset in self._datasets)
        return tuple(map(len, self._rows))

    @cached_property
    def _rows(self) -> list[NDArray[np.int64]]:
        """The rows of each data set that are its clips here, where some are left out: 8 bytes each."""
        return [
            find_once(self.found, f"rows-{number}", partial(self._find_rows, dataset))
            for number, dataset in enumerate(self._datasets)
        ]

    def _find_rows(self, dataset: Any) -> NDArray[np.int64]:
        rows = array("q", (row for row, texts in enumerate(_captions(dataset)) if self._is_long_enough(texts)))
        return np.frombuffer(rows, np.int64)

    def _is_long_enough(self, texts: Sequence[str]) -> bool:
        return not self.min_words or any(len(text.split()) >= self.min_words for text in texts)

    def __len__(self) -> int:
        return sum(self.sizes)

    @cached_property
    def clip_ids(self) -> tuple[str, ...]:
        """The id of every clip, in order; an id that two data sets share is there twice."""
        columns = [dataset.to_table(columns=["clip_id"])["clip_id"] for dataset in self._datasets]
        if self.min_words:
            columns = [column.take(rows) for column, rows in zip(columns, self._rows, strict=True)]
        return tuple(clip_id for column in columns for clip_id in column.to_pylist())

    def sentences(self) -> Iterator[str]:
        """All sentences of all clips, of which nothing else is read."""
        for texts in self._captions():
            yield from texts

    def shared_captions(self) -> CaptionIds:
        """The captions that more than one clip has; 16 bytes a caption while they are looked for."""
        return CaptionIds(find_once(self.found, "shared", self._find_shared))

    def _find_shared(self) -> NDArray[np.int64]:
        of_clips = array("q")
        for texts in self._captions():
            of_clips.extend({caption_id(text) for text in texts})
        ids = np.frombuffer(of_clips, np.int64) if of_clips else np.zeros(0, np.int64)
        ids = np.sort(ids)
        return np.unique(ids[1:][ids[1:] == ids[:-1]])

    def _captions(self) -> Iterator[list[str]]:
        """The captions of each clip."""
        for dataset in self._datasets:
            yield from filter(self._is_long_enough, _captions(dataset))

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Clip]:
        """The clips at `indices`, in that order.

        Raises:
            IndexError: there is no such clip.
        """
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        wanted = np.asarray(indices)
        clips: list[Clip | None] = [None] * len(wanted)
        for number, (dataset, low, high) in enumerate(zip(self._datasets, starts[:-1], starts[1:], strict=True)):
            places = np.flatnonzero((wanted >= low) & (wanted < high))
            if len(places):
                inside = wanted[places] - low
                kept = self._rows[number][inside] if self.min_words else inside
                rows = dataset.take(kept.tolist(), columns=COLUMNS).to_pylist()
                for place, row in zip(places, rows, strict=True):
                    clips[place] = decode_row(row)
        if None in clips:
            raise IndexError(f"of {len(self)} clips there is none at {wanted[[clip is None for clip in clips]]}")
        return clips  # type: ignore[return-value]


def _open(path: str) -> Any:
    import lance

    try:
        return lance.dataset(path)
    except (ValueError, OSError) as error:
        reason = str(error).partition("\n")[0].partition(", /")[0]  # then comes a line of Lance's source
        raise ValueError(f"no clips can be read from {path}: {reason}") from error


def _captions(dataset: Any) -> Iterator[list[str]]:
    """The captions of each clip of a Lance data set, of which nothing else is read."""
    for batch in dataset.to_batches(columns=["texts"]):
        for texts in batch.column("texts").to_pylist():
            yield [text["text"] for text in texts]


def find_once(directory: Path | None, name: str, find: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
    """The numbers of the file `name` in `directory`, mapped into memory; where it is missing, `find` them first.

    Without a directory they are found, and not kept.
    """
    if directory is None:
        return find()
    file = directory / f"{name}.npy"
    if not file.exists():
        with atomic_file(file) as partial, partial.open("wb") as stream:
            np.save(stream, find())
    numbers: NDArray[np.int64] = np.load(file, mmap_mode="r")
    return numbers


def data_files(clips: Path) -> list[str]:
    """The names of the files of a data set; Lance draws new ones for every write."""
    return sorted(p.relative_to(clips).as_posix() for p in clips.rglob("*") if p.is_file())


def data_version(clips: Path) -> str:
    """16 hex digits that differ between any two data sets of clips, and between two writes of the same one."""
    return hash_text("\n".join(data_files(clips)), digits=16)
