"""What an evaluation leaves behind, and all that a comparison of two models needs: `Scores`.

On disk it is files side by side: `scores.json` (the test set, named values, their intervals, notes), `ranks.parquet`
(what became of each query) and, where there are any, `samples.parquet` (values of each clip). The first holds the
digests of the others, so that files which don't belong together, as a process killed between them leaves them, are
noticed instead of compared.
"""

import io
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from clip4vla.evaluation.retrieval_metrics import (
    CUTOFFS,
    METRICS,
    FloatArray,
    Interval,
    QueryRanks,
    mean_interval,
    retrieval_intervals,
    retrieval_scores,
)
from clip4vla.utils.files import atomic_file, write_json
from clip4vla.utils.hashing import hash_bytes, hash_text
from clip4vla.utils.numbers import format_count

BY_QUERY, HELD_OUT = "by_query", "held_out"
"""Groups of scores: `by_query/KIND/MODALITY/R@1`, and the same for phrasings that training does not have."""
WITH_SOUND = "with_sound"
"""Group of the scores on the clips that have sound alone, as some publications report them:
`with_sound/text_to_clip/both/R@1`. Not there where all clips have sound, or none."""
UNSEEN, ORIGINAL = "unseen", "original"
"""Groups of scores of a corpus of the role `unseen`: `unseen/CORPUS/KIND/both/R@1`, and
`original/CORPUS/KIND/both/R@1`, the same queries on the original clips."""
QUERY_KINDS = ("all", "two", "seen", "heard", "said", "unrelated_sound")
"""Kinds of query in the order of tables and figures. A corpus may have others, which follow in alphabetical order."""
SCORES_FILE = "scores.json"
RANKS_FILE = "ranks.parquet"
SAMPLES_FILE = "samples.parquet"

Parsed = TypeVar("Parsed")

_HITS = tuple(f"hit@{k}" for k in CUTOFFS)
_SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("direction", "modality", "query_id", "clip_id")],
        *[(name, pa.float64()) for name in ("rank", *_HITS)],
    ]
)


@dataclass(frozen=True)
class QueryTable:
    """Q queries of one direction and modality: their ids, the clip each belongs to, and what became of them."""

    query_ids: tuple[str, ...]
    clip_ids: tuple[str, ...]
    """(Q,) clip of each query: queries of one clip succeed or fail together and are resampled together."""
    ranks: QueryRanks

    def __post_init__(self) -> None:
        if not len(self.query_ids) == len(self.clip_ids) == len(self.ranks):
            sizes = f"{len(self.query_ids)} query ids, {len(self.clip_ids)} clip ids and {len(self.ranks)} ranks"
            raise ValueError(f"{sizes} are not one table")
        if len(set(self.query_ids)) != len(self.query_ids):
            raise ValueError("a query id occurs twice")


_SAMPLES_SCHEMA = pa.schema([("score", pa.string()), ("clip_id", pa.string()), ("value", pa.float64())])


@dataclass(frozen=True)
class Samples:
    """A number for each of G clips, whose mean is a score."""

    clip_ids: tuple[str, ...]
    values: FloatArray
    """(G,)"""

    def __post_init__(self) -> None:
        if len(self.clip_ids) != len(self.values) or not len(self.values):
            raise ValueError(f"{len(self.clip_ids)} clips and {len(self.values)} values are not one table")
        if len(set(self.clip_ids)) != len(self.clip_ids):
            raise ValueError("a clip occurs twice")

    @property
    def mean(self) -> float:
        """The score."""
        return float(np.mean(self.values))


@dataclass(frozen=True)
class SplitSize:
    """How large a test set is: publications mean different ones by the same name."""

    clips: int
    with_sound: int
    """Those that have an audio track."""

    def __str__(self) -> str:
        return f"{format_count(self.clips)} clips, {format_count(self.with_sound)} of them with sound"


@dataclass(frozen=True)
class Scores:
    """The scores of one model on one test set."""

    test_set: str
    """Fingerprint of the test clips and captions: scores are comparable only where it is the same."""
    values: Mapping[str, float]
    """Flat names: `text_to_clip/both/R@1`, `clip_to_text/video/MdR`, `probe/nonverbal/sound/R@1`."""
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    """95 % interval `(low, high)` of a value, where there is one."""
    queries: Mapping[str, QueryTable] = field(default_factory=dict)
    """Per-query results by `group/modality`, such as `text_to_clip/both` or `by_query/seen/both`."""
    samples: Mapping[str, Samples] = field(default_factory=dict)
    """Values of each clip by the score that is their mean, such as `caption/both/CIDEr`."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """How scores were measured, and why one is missing, by name."""
    size: SplitSize | None = None
    """None: of scores that an earlier version wrote."""

    def __post_init__(self) -> None:
        if not self.test_set:
            raise ValueError("scores need the fingerprint of their test set")
        for name, value in self.values.items():
            if not np.isfinite(value):
                raise ValueError(f"the score {name} is {value}")
        for name, (low, high) in self.intervals.items():
            if name not in self.values or not low <= high:
                raise ValueError(f"the interval {low} to {high} of {name} has no score or runs backwards")
        for name in self.queries:
            if "/" not in name:
                raise ValueError(f"the queries {name!r} are not named group/modality")
        self._check_values_follow_queries()

    def _check_values_follow_queries(self) -> None:
        """A value must agree with its per-query or per-clip results: one is shown, the other compared."""
        for name, samples in self.samples.items():
            if name not in self.values or not np.isclose(self.values[name], samples.mean, rtol=1e-9, atol=1e-6):
                raise ValueError(f"the score {name} is {self.values.get(name)}, but its clips give {samples.mean}")
        for name, table in self.queries.items():
            for metric, value in retrieval_scores(table.ranks).items():
                stated = self.values.get(f"{name}/{metric}", value)
                if not np.isclose(stated, value, rtol=1e-9, atol=1e-6):
                    raise ValueError(f"the score {name}/{metric} is {stated}, but its queries give {value}")

    def query_kinds(self, group: str = BY_QUERY) -> tuple[str, ...]:
        """The kinds of query that were scored in a group, in the order of `QUERY_KINDS`."""
        found = {name.removeprefix(f"{group}/").split("/")[0] for name in self.queries if name.startswith(f"{group}/")}
        return tuple(sorted(found, key=query_kind_place))

    def unseen_corpora(self) -> tuple[str, ...]:
        """The corpora of the role `unseen` that were scored."""
        return tuple(sorted({name.split("/")[1] for name in self.queries if name.startswith(f"{UNSEEN}/")}))

    def tree(self) -> dict[str, Any]:
        """The values, nested by the parts of their names, with the intervals of each group beside them as `ci95`.

        `text_to_clip/both/R@1` is at `tree["text_to_clip"]["both"]["R@1"]`, its interval `[low, high]` at
        `tree["text_to_clip"]["both"]["ci95"]["R@1"]`.
        """
        tree: dict[str, Any] = {}
        for name, value in self.values.items():
            *groups, metric = name.split("/")
            group = tree
            for part in groups:
                group = group.setdefault(part, {})
            group[metric] = value
            if name in self.intervals:
                group.setdefault("ci95", {})[metric] = list(self.intervals[name])
        return tree

    def write(self, directory: Path) -> None:
        """Write the files into `directory` (made if missing), each atomically; `scores.json` comes last."""
        ranks = _ranks_bytes(self.queries)
        samples = _samples_bytes(self.samples) if self.samples else None
        document = _Document(
            test_set=self.test_set,
            values=dict(self.values),
            intervals=dict(self.intervals),
            ranks_sha256=hash_bytes([ranks]),
            samples_sha256=None if samples is None else hash_bytes([samples]),
            notes=dict(self.notes),
            size=self.size,
        )
        for name, content in ((RANKS_FILE, ranks), (SAMPLES_FILE, samples)):
            if content is not None:
                with atomic_file(directory / name) as partial:
                    partial.write_bytes(content)
        write_json(directory / SCORES_FILE, document.model_dump())

    @classmethod
    def read(cls, directory: Path) -> "Scores":
        """Read what `write` wrote.

        Raises:
            ValueError: a file is missing, malformed or not the one that belongs to the other; the message names
                the file.
        """
        document = _read_document(directory / SCORES_FILE)
        queries = _read_table(directory / RANKS_FILE, document.ranks_sha256, _SCHEMA, _from_arrow)
        samples: dict[str, Samples] = {}
        if document.samples_sha256 is not None:
            path, sha256 = directory / SAMPLES_FILE, document.samples_sha256
            samples = _read_table(path, sha256, _SAMPLES_SCHEMA, _samples_from_arrow)
        try:
            facts = document.test_set, document.values, document.intervals, queries, samples
            return cls(*facts, document.notes, document.size)
        except ValueError as error:
            raise ValueError(f"{directory / SCORES_FILE}: {error}") from error


class _Document(BaseModel):
    """The content of `scores.json`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    test_set: str
    values: dict[str, FiniteFloat]
    intervals: dict[str, tuple[FiniteFloat, FiniteFloat]]
    ranks_sha256: str
    samples_sha256: str | None = None
    notes: dict[str, str] = {}
    size: SplitSize | None = None


def summarise(
    test_set: str,
    queries: Mapping[str, QueryTable],
    resamples: int,
    seed: int,
    others: Mapping[str, float] | None = None,
    other_intervals: Mapping[str, Interval] | None = None,
    size: SplitSize | None = None,
) -> Scores:
    """Scores of all `queries` (by `direction/modality`) with their intervals, joined by values measured elsewhere."""
    values, intervals = dict(others or {}), dict(other_intervals or {})
    for table_name, table in queries.items():
        found = retrieval_scores(table.ranks)
        spread = retrieval_intervals(table.ranks, table.clip_ids, resamples, seed)
        values |= {f"{table_name}/{name}": value for name, value in found.items()}
        intervals |= {f"{table_name}/{name}": ends for name, ends in spread.items()}
    return Scores(test_set, values, intervals, dict(queries), size=size)


def summarise_samples(
    test_set: str,
    samples: Mapping[str, Samples],
    resamples: int,
    seed: int,
    others: Mapping[str, float],
    notes: Mapping[str, str],
    size: SplitSize | None = None,
) -> Scores:
    """Scores that are means over clips, with their intervals, joined by values that have none."""
    values = dict(others) | {name: found.mean for name, found in samples.items()}
    intervals = {name: mean_interval(found.values, found.clip_ids, resamples, seed) for name, found in samples.items()}
    return Scores(test_set, values, intervals, {}, dict(samples), dict(notes), size)


def fingerprint(captions: Iterable[tuple[str, str]], content: str = "") -> str:
    """The identity of a test set: 16 hex digits of all (clip id, caption), in any order.

    `content` adds what the captions don't show, such as the digest of the stored clips: a test set with another
    sound mix is another test set.
    """
    lines = sorted(json.dumps(pair) for pair in captions)
    if not lines:
        raise ValueError("a test set without captions has no fingerprint")
    return hash_text("\n".join([*lines, content]), digits=16)


def query_kind_place(kind: str) -> tuple[int, str]:
    """Where a kind of query stands among others: a key to sort by."""
    return QUERY_KINDS.index(kind) if kind in QUERY_KINDS else len(QUERY_KINDS), kind


def is_headline(name: str) -> bool:
    """Whether models are compared by the retrieval score `name`.

    That is every R@1, but of the kinds of query only by both modalities and in trained phrasings, and of unseen clips
    not that of the original ones beside it.
    """
    group, *parts = name.split("/")
    return parts[-1:] == ["R@1"] and group not in (HELD_OUT, ORIGINAL) and (group != BY_QUERY or parts[-2] == "both")


def lower_is_better(name: str) -> bool:
    """Whether the score `name` counts places (`MdR`, `MnR`) rather than successes."""
    metric = METRICS.get(name.rsplit("/", 1)[-1])
    return metric is not None and metric.lower_is_better


def _ranks_bytes(queries: Mapping[str, QueryTable]) -> bytes:
    tables = [_to_arrow(name, queries[name]) for name in sorted(queries)]
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables([_SCHEMA.empty_table(), *tables]), buffer, compression="zstd")
    return buffer.getvalue()


def _to_arrow(name: str, table: QueryTable) -> pa.Table:
    direction, modality = name.rsplit("/", 1)
    count = len(table.ranks)
    texts = [[direction] * count, [modality] * count, list(table.query_ids), list(table.clip_ids)]
    return pa.table([*texts, table.ranks.rank, *table.ranks.hits.T], schema=_SCHEMA)


def _read_document(path: Path) -> _Document:
    try:
        return _Document.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: evaluate the model first") from None
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or '(top)'}: {e['msg']}" for e in error.errors()]
        raise ValueError("\n".join([f"{path} is not a scores file:", *lines])) from None


def _read_table(path: Path, sha256: str, schema: pa.Schema, parse: Callable[[pa.Table], Parsed]) -> Parsed:
    if not path.is_file():
        raise ValueError(f"{path} is missing: evaluate the model again")
    content = path.read_bytes()
    if hash_bytes([content]) != sha256:
        raise ValueError(f"{path} is not the one that {SCORES_FILE} beside it was written with: evaluate again")
    try:
        table = pq.ParquetFile(io.BytesIO(content)).read()  # `read_table` imports pandas
        if not table.schema.equals(schema):
            raise ValueError(f"its columns are {', '.join(table.schema.names)}")
        if any(column.null_count for column in table.columns):
            raise ValueError("it has empty cells")
        return parse(table)
    except (pa.ArrowInvalid, ValueError) as error:
        raise ValueError(f"{path} is not a table of {path.stem}: {error}") from error


def _from_arrow(table: pa.Table) -> dict[str, QueryTable]:
    columns = {name: np.asarray(table.column(name).to_pylist()) for name in _SCHEMA.names}
    keys = np.array([f"{d}/{m}" for d, m in zip(columns["direction"], columns["modality"], strict=True)], dtype=str)
    return {str(key): _rows(columns, keys == key) for key in np.unique(keys)}


def _rows(columns: Mapping[str, np.ndarray], rows: np.ndarray) -> QueryTable:
    hits = np.stack([columns[name][rows] for name in _HITS], axis=1)
    return QueryTable(
        tuple(columns["query_id"][rows].tolist()),
        tuple(columns["clip_id"][rows].tolist()),
        QueryRanks(columns["rank"][rows], hits),
    )


def _samples_bytes(samples: Mapping[str, Samples]) -> bytes:
    tables = [
        pa.table([[name] * len(found.values), list(found.clip_ids), found.values], schema=_SAMPLES_SCHEMA)
        for name, found in sorted(samples.items())
    ]
    buffer = io.BytesIO()
    pq.write_table(pa.concat_tables(tables), buffer, compression="zstd")
    return buffer.getvalue()


def _samples_from_arrow(table: pa.Table) -> dict[str, Samples]:
    names, clips, values = (np.asarray(table.column(name).to_pylist()) for name in _SAMPLES_SCHEMA.names)
    return {
        str(name): Samples(tuple(clips[names == name].tolist()), values[names == name]) for name in np.unique(names)
    }
