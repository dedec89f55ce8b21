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
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        missing = [str(path) for path in paths if not path.is_dir()]
        if missing or not paths:
            raise ValueError(f"no clips at {', '.join(missing) or 'all'}: run `dvc repro clips` first")
        self.paths = tuple(paths)

    def __getstate__(self) -> dict[str, Any]:
        return {"paths": self.paths}

    @cached_property
    def _datasets(self) -> list[Any]:
        import lance

        return [lance.dataset(str(path)) for path in self.paths]

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """Clips in each data set."""
        return tuple(dataset.count_rows() for dataset in self._datasets)

    def __len__(self) -> int:
        return sum(self.sizes)

    @cached_property
    def clip_ids(self) -> tuple[str, ...]:
        """The id of every clip, in order; an id that two data sets share is there twice."""
        tables = [dataset.to_table(columns=["clip_id"]) for dataset in self._datasets]
        return tuple(clip_id for table in tables for clip_id in table["clip_id"].to_pylist())

    def sentences(self) -> Iterator[str]:
        """All sentences of all clips, of which nothing else is read."""
        for dataset in self._datasets:
            for batch in dataset.to_batches(columns=["texts"]):
                for texts in batch.column("texts").to_pylist():
                    yield from (text["text"] for text in texts)

    def take(self, indices: Sequence[int] | NDArray[np.int64]) -> list[Clip]:
        """The clips at `indices`, in that order.

        Raises:
            IndexError: there is no such clip.
        """
        starts = np.concatenate([[0], np.cumsum(self.sizes)])
        wanted = np.asarray(indices)
        clips: list[Clip | None] = [None] * len(wanted)
        for dataset, low, high in zip(self._datasets, starts[:-1], starts[1:], strict=True):
            places = np.flatnonzero((wanted >= low) & (wanted < high))
            if len(places):
                rows = dataset.take((wanted[places] - low).tolist(), columns=COLUMNS).to_pylist()
                for place, row in zip(places, rows, strict=True):
                    clips[place] = decode_row(row)
        if None in clips:
            raise IndexError(f"of {len(self)} clips there is none at {wanted[[clip is None for clip in clips]]}")
        return clips  # type: ignore[return-value]


def data_files(clips: Path) -> list[str]:
    """The names of the files of a data set; Lance draws new ones for every write."""
    return sorted(p.relative_to(clips).as_posix() for p in clips.rglob("*") if p.is_file())


def data_version(clips: Path) -> str:
    """16 hex digits that differ between any two data sets of clips, and between two writes of the same one."""
    return hash_text("\n".join(data_files(clips)), digits=16)
