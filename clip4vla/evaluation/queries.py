"""Retrieval by kind of query: what people type names one thing, or two, seldom everything.

In: `queries.json`, which a corpus may leave beside its annotations: for each split a list of `query`, `kind`,
`phrasing` (`trained`, or `held_out` of training) and `clips`, all that the query is true of; and similarities. Out:
ranks by kind, for `Scores`, and the mean weights of a model with experts.

Shapes: Q queries, G clips of the split, E experts.
"""

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, TypeAdapter, ValidationError

from clip4vla.config import FrozenConfig
from clip4vla.evaluation.retrieval_metrics import ranks
from clip4vla.evaluation.scores import BY_QUERY, HELD_OUT, QueryTable
from clip4vla.records import Modality, Split
from clip4vla.utils.hashing import hash_json

WEIGHT = "weight"
"""`by_query/KIND/weight/EXPERT` is the mean weight of an expert."""


class Query(FrozenConfig):
    """A sentence, and the clips that it is true of."""

    query: str
    kind: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]
    """Part of the names of its scores; see `scores.QUERY_KINDS` for those of StampScenes."""
    phrasing: Literal["trained", "held_out"]
    clips: Annotated[tuple[str, ...], Field(min_length=1)]

    @property
    def group(self) -> str:
        """Queries about the same clips succeed or fail together, and are resampled together."""
        return "|".join(sorted(self.clips))


@dataclass(frozen=True)
class QuerySet:
    """The queries of a split."""

    queries: tuple[Query, ...]

    @classmethod
    def read(cls, path: Path, split: Split) -> "QuerySet":
        """The queries of `split` in a `queries.json`; none where it has none of that split.

        Raises:
            ValueError: the file is missing or isn't one.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            return cls(TypeAdapter(tuple[Query, ...]).validate_python(tree.get(split, ())))
        except (OSError, json.JSONDecodeError, ValidationError, AttributeError) as error:
            raise ValueError(f"{path}, named by evaluation.queries, is not a queries file: {error}") from error

    def __len__(self) -> int:
        return len(self.queries)

    @property
    def sentences(self) -> list[str]:
        """(Q,) what is typed."""
        return [query.query for query in self.queries]

    @property
    def digest(self) -> str:
        """Hash of all queries: part of what tells one test set from another."""
        return hash_json([query.model_dump(mode="json") for query in self.queries])

    def groups(self) -> dict[str, list[int]]:
        """Rows of the queries by score group and kind, such as `by_query/seen`."""
        rows: dict[str, list[int]] = {}
        for row, query in enumerate(self.queries):
            group = BY_QUERY if query.phrasing == "trained" else HELD_OUT
            rows.setdefault(f"{group}/{query.kind}", []).append(row)
        return rows

    def groups_about(self, clip_ids: Container[str], group: str) -> dict[str, list[int]]:
        """Rows of the queries in trained phrasings all of whose right clips are in `clip_ids`, by `group/KIND`."""
        rows: dict[str, list[int]] = {}
        for row, query in enumerate(self.queries):
            if query.phrasing == "trained" and all(clip in clip_ids for clip in query.clips):
                rows.setdefault(f"{group}/{query.kind}", []).append(row)
        return rows

    def tables(
        self,
        similarity: Mapping[Modality, NDArray[np.float32]],
        clip_ids: Sequence[str],
        groups: Mapping[str, list[int]] | None = None,
    ) -> dict[str, QueryTable]:
        """Ranks by `GROUP/KIND/MODALITY`.

        Args:
            similarity: (Q, G) by modality.
            clip_ids: (G,)
            groups: rows of the queries by `GROUP/KIND`; None is `groups()`.

        Raises:
            ValueError: a query names a clip that is not in the split.
        """
        row_of = {clip_id: row for row, clip_id in enumerate(clip_ids)}
        positives = self._positives(row_of)
        tables = {}
        for group, rows in (self.groups() if groups is None else groups).items():
            pairs = np.array([(place, item) for place, row in enumerate(rows) for item in positives[row]])
            ids = tuple(f"{self.queries[row].kind}#{row}" for row in rows)
            resampled = tuple(self.queries[row].group for row in rows)
            for modality, scores in similarity.items():
                tables[f"{group}/{modality}"] = QueryTable(ids, resampled, ranks(scores[rows], pairs))
        return tables

    def mean_weights(self, weights: NDArray[np.float32], experts: Sequence[str]) -> dict[str, float]:
        """Mean weights by `GROUP/KIND/weight/EXPERT` of weights (Q, E)."""
        return {
            f"{group}/{WEIGHT}/{expert}": float(weights[rows, column].mean())
            for group, rows in self.groups().items()
            for column, expert in enumerate(experts)
        }

    def _positives(self, row_of: Mapping[str, int]) -> list[list[int]]:
        """Rows of the right clips of each query."""
        unknown = sorted({clip for query in self.queries for clip in query.clips if clip not in row_of})
        if unknown:
            raise ValueError(f"queries name {len(unknown)} clips that the split does not have, such as {unknown[0]}")
        return [[row_of[clip] for clip in query.clips] for query in self.queries]


NO_QUERIES = QuerySet(())
