"""How far what a served model embeds has moved from its test set: embeddings in, a number out.

The evaluation keeps the mean and the spread of the test set's embeddings beside the scores, a version carries them
(`reference.json`), and the served model compares those of its last rows with them.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from clip4vla.utils.files import write_json

REFERENCE_FILE = "reference.json"
Kind = Literal["text", "media"]


@dataclass(frozen=True)
class EmbeddingStatistics:
    """Where embeddings lie."""

    count: int
    mean: tuple[float, ...]
    """(D,)"""
    spread: float
    """Mean squared distance from the mean."""

    @classmethod
    def of(cls, vectors: NDArray[np.float32]) -> "EmbeddingStatistics":
        """The statistics of embeddings.

        Args:
            vectors: (N, D), N at least 2.
        """
        mean = vectors.mean(axis=0, dtype=np.float64)
        spread = float(((vectors - mean) ** 2).sum() / (len(vectors) - 1))
        return cls(len(vectors), tuple(mean.tolist()), spread)

    def drift(self, seen: "EmbeddingStatistics") -> float:
        """Distance of the mean of `seen` from this one, in units of the root of this spread.

        The distance that samples of this size have by chance is subtracted: 0 is the same distribution, however few
        were seen; 1 is as far as single embeddings of the test set lie from their mean.
        """
        distance = float(((np.array(seen.mean) - np.array(self.mean)) ** 2).sum())
        by_chance = seen.spread / seen.count + self.spread / self.count
        return math.sqrt(max(0.0, distance - by_chance) / self.spread)


Reference = Mapping[Kind, EmbeddingStatistics]
_READER = TypeAdapter(dict[Kind, EmbeddingStatistics])


def make_reference(embeddings: Mapping[Kind, NDArray[np.float32]]) -> Reference:
    """The statistics of each kind of embeddings (N, D) that has two different ones: others tell no distance."""
    found = {kind: EmbeddingStatistics.of(vectors) for kind, vectors in embeddings.items() if len(vectors) > 1}
    return {kind: statistics for kind, statistics in found.items() if statistics.spread > 0}


def write_reference(reference: Reference, directory: Path) -> None:
    """Keep the statistics of a test set in `directory`."""
    write_json(directory / REFERENCE_FILE, _READER.dump_python(dict(reference), mode="json"))


def read_reference(directory: Path) -> Reference | None:
    """The statistics in `directory`; None where there are none, as of a model that captions.

    Raises:
        ValueError: the file is damaged.
    """
    path = directory / REFERENCE_FILE
    return _READER.validate_json(path.read_bytes()) if path.is_file() else None
