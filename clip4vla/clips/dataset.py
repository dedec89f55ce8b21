"""Random access to stored clips.

In: the paths of Lance data sets. Out: clips by index, in any order.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip4vla.clips.format import Clip, decode_row
from clip4vla.utils.hashing import hash_text

COLUMNS = ["clip_id", "frames", "audio", "channels", "texts"]


class ClipDataset:
    """Random access to the clips of one or several Lance data sets, one after the other.

    Opened on first use, so that it can be sent to a worker process.

    Args:
        paths: of the data sets.
        min_words: clips without a caption of as many words are left out.

    Raises:
        ValueError: there is no path, or no data set at one.
    """

    def __init__(self, paths: Sequence[Path], min_words: int = 0) -> None:
        missing = [str(path) for path in paths if not path.is_dir()]
        if missing or not paths:
            raise ValueError(f"no clips at {', '.join(missing) or 'all'}: run `dvc repro clips` first")
        self.paths = tuple(paths)
        self.min_words = min_words

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths, "min_words": self.min_words}

    @cached_property
    def _datasets(self) -> list[Any]:
        import lance

        return [lance.dataset(str(path)) for path in self.paths]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Clips in each data set."""
        return tuple(map(len, self._rows))

    @cached_property
    def _rows(self) -> list[NDArray[np.int64]]:
        """The rows of each data set that are its clips here."""
        if not self.min_words:
            return [np.arange(dataset.count_rows()) for dataset in self._datasets]
        long_enough = [[self._is_long_enough(texts) for texts in _captions(dataset)] for dataset in self._datasets]
        return [np.flatnonzero(kept) for kept in long_enough]

    def _is_long_enough(self, texts: Sequence[str]) -> bool:
        return any(len(text.split()) >= self.min_words for text in texts)

    def __len__(self) -> int:
        return sum(self.sizes)

    @cached_property
    def clip_ids(self) -> tuple[str, ...]:
        """The id of every clip, in order; an id that two data sets share is there twice."""
        tables = [dataset.to_table(columns=["clip_id"]) for dataset in self._datasets]
        found = [table["clip_id"].take(rows).to_pylist() for table, rows in zip(tables, self._rows, strict=True)]
        return tuple(clip_id for clip_ids in found for clip_id in clip_ids)

    def sentences(self) -> Iterator[str]:
        """All sentences of all clips, of which nothing else is read."""
        for texts in self._captions():
            yield from texts

    def shared_captions(self) -> frozenset[str]:
        """The captions that more than one clip has."""
        seen: set[str] = set()
        shared: set[str] = set()
        for texts in self._captions():
            shared.update(seen.intersection(texts))
            seen.update(texts)
        return frozenset(shared)

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
        for dataset, kept, low, high in zip(self._datasets, self._rows, starts[:-1], starts[1:], strict=True):
            places = np.flatnonzero((wanted >= low) & (wanted < high))
            if len(places):
                rows = dataset.take(kept[wanted[places] - low].tolist(), columns=COLUMNS).to_pylist()
                for place, row in zip(places, rows, strict=True):
                    clips[place] = decode_row(row)
        if None in clips:
            raise IndexError(f"of {len(self)} clips there is none at {wanted[[clip is None for clip in clips]]}")
        return clips  # type: ignore[return-value]


def _captions(dataset: Any) -> Iterator[list[str]]:
    """The captions of each clip of a Lance data set, of which nothing else is read."""
    for batch in dataset.to_batches(columns=["texts"]):
        for texts in batch.column("texts").to_pylist():
            yield [text["text"] for text in texts]


def data_files(clips: Path) -> list[str]:
    """The names of the files of a data set; Lance draws new ones for every write."""
    return sorted(p.relative_to(clips).as_posix() for p in clips.rglob("*") if p.is_file())


def data_version(clips: Path) -> str:
    """16 hex digits that differ between any two data sets of clips, and between two writes of the same one."""
    return hash_text("\n".join(data_files(clips)), digits=16)
