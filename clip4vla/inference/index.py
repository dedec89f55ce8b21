"""An index of a folder of media, searched by sentences.

In: a folder, and the champion's model directory. Out: a directory that holds the model, so that searching needs no
registry, and a Lance data set with a row per clip: its file and span, its vectors by modality, small pictures and a
sound excerpt. A file longer than a clip becomes several clips. Building it again decodes only new and changed files,
unless the model has changed; what a killed build has finished is kept.

Shapes: N clips, D embedding width.
"""

import math
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import chain, groupby
from pathlib import Path, PurePath
from typing import Any, Literal, TypeVar

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clip4vla.clips.format import Clip
from clip4vla.clips.preview import Preview, make_preview
from clip4vla.config import FrozenConfig, InferenceConfig
from clip4vla.corpora.media_index import AUDIO_SUFFIXES, VIDEO_SUFFIXES, is_unicode, walk_files
from clip4vla.inference.embedder import Embedder
from clip4vla.media.decode import duration_s
from clip4vla.media.source import MediaError
from clip4vla.records import CONFIG_FILE, MODALITIES, WEIGHTS_FILE, Modality
from clip4vla.utils.files import atomic_directory, file_state, read_json, write_json
from clip4vla.utils.progress import track

MODEL, CLIPS, ABOUT, REJECTS = "model", "clips.lance", "index.json", "rejects.json"
SHOWN = ("path", "start_s", "end_s", "pictures", "sound")
CLIPS_AT_ONCE = 32
"""Clips that pass through the towers together."""
CLIPS_PER_COMMIT = 256
"""Least clips, of complete files, that become visible together."""
PATHS_AT_ONCE = 64
"""Files that are removed together."""
EXACT_UP_TO = 20_000
"""Clips that are all compared; more are found by a vector index."""
SENTENCES_KEPT = 256
PROBES = 24
"""Parts of the vector index that are looked into."""

Listen = Literal["sound", "speech", "picture"]
EXPERT_OF: dict[Listen, str] = {"sound": "nonverbal", "speech": "verbal", "picture": "video"}
"""The expert of a model with experts that stands for each."""
EXPERT_LABELS: dict[str, str] = {expert: name for name, expert in EXPERT_OF.items()} | {"none": "audio"}
"""What an expert listens for; `none` is the audio expert without a type token."""
MODALITY_OF: dict[Listen, Modality] = {"sound": "audio", "speech": "audio", "picture": "video"}
"""The modality that each expert reads."""

Item = TypeVar("Item")
Result = TypeVar("Result")


class IndexedModel(FrozenConfig):
    """Which model an index was built with."""

    name: str
    version: str
    content: str
    """Hash of the model: another one has other vectors."""
    inference: InferenceConfig
    clip_seconds: float
    """The most that a clip of the index lasts."""


@dataclass(frozen=True)
class Summary:
    """What a build did, in files and clips."""

    clips: int
    added: int
    kept: int
    removed: int
    rejects: Mapping[str, str]
    """Why a file isn't in the index, by its path."""


@dataclass(frozen=True)
class Hit:
    """A clip that was found."""

    row: int
    """Its number in the opened index."""
    path: str
    start_s: float
    end_s: float
    scores: Mapping[Modality, float]
    """Score by each modality, a cosine or, with experts, a weighted sum of cosines; those that the clip lacks are left
    out."""
    pictures: tuple[bytes, ...]
    sound: bytes | None


def build(folder: Path, directory: Path, run_directory: Path, model: IndexedModel) -> Summary:
    """Bring the index in `directory` up to date with `folder` and `model`, or make it.

    Args:
        run_directory: holds the model, such as `Registry.fetch` leaves it.

    Raises:
        ValueError: there is no such folder, or no media in it.
    """
    files = find_media(folder)
    if not files:
        raise ValueError(f"{folder} has no media; those with {', '.join(sorted(VIDEO_SUFFIXES))} and sounds are taken")
    if _read_about(directory) != (model, folder.resolve()):
        _begin(directory, run_directory, model, folder.resolve())
    embedder = Embedder.open(directory / MODEL, model.inference, CLIPS_AT_ONCE)
    before = _indexed_files(directory)
    stale = [path for path, state in before.items() if files.get(path) != state]
    _remove(directory, stale)
    fresh = [path for path in files if path not in before or path in stale]
    rejects = _add(directory, folder, {path: files[path] for path in fresh}, embedder, model.clip_seconds)
    write_json(directory / REJECTS, rejects)
    if not (directory / CLIPS).is_dir():
        raise ValueError(f"no file of {folder} can be used; the first: {next(iter(rejects.values()))}")
    dataset = lance.dataset(str(directory / CLIPS))
    if fresh or stale:
        index_vectors(dataset)
    return Summary(dataset.count_rows(), len(fresh) - len(rejects), len(before) - len(stale), len(stale), rejects)


def find_media(folder: Path) -> dict[str, tuple[int, int]]:
    """Size and moment of change of every media file under `folder`, by its path in there, as for a corpus.

    Raises:
        ValueError: there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}")
    suffixes = VIDEO_SUFFIXES | AUDIO_SUFFIXES
    found = sorted(path for path in walk_files(folder) if PurePath(path).suffix.lower() in suffixes)
    return {path: state for path in found if (state := _state(folder / path)) is not None}


def _state(path: Path) -> tuple[int, int] | None:
    """Size and moment of change; None where there is no such file, such as one that was removed a moment ago."""
    state = file_state(path)
    return None if state is None else (state[0], state[1])


def spans(seconds: float, longest: float) -> list[tuple[float, float]]:
    """Begin and end of the equal parts of a file, none of them longer than `longest`."""
    count = max(1, math.ceil(seconds / longest))
    return [(index * seconds / count, (index + 1) * seconds / count) for index in range(count)]


def _begin(directory: Path, run_directory: Path, model: IndexedModel, folder: Path) -> None:
    with atomic_directory(directory) as partial:
        (partial / MODEL).mkdir()
        for name in (WEIGHTS_FILE, CONFIG_FILE):
            shutil.copy(run_directory / name, partial / MODEL)
        write_json(partial / ABOUT, {"folder": str(folder), "model": model.model_dump(mode="json")})


def _read_about(directory: Path) -> tuple[IndexedModel, Path] | None:
    path = directory / ABOUT
    if not path.is_file():
        if directory.is_dir() and any(directory.iterdir()):
            raise ValueError(f"{directory} is no index, and isn't empty: name another directory")
        return None
    try:
        tree = read_json(path)
        return IndexedModel.model_validate(tree["model"]), Path(tree["folder"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged, or of another version: remove {directory} and index again") from error


def _indexed_files(directory: Path) -> dict[str, tuple[int, int]]:
    if not (directory / CLIPS).is_dir():
        return {}
    table = lance.dataset(str(directory / CLIPS)).to_table(columns=["path", "bytes", "modified_ns"])
    return {row["path"]: (row["bytes"], row["modified_ns"]) for row in table.to_pylist()}


def _remove(directory: Path, paths: Sequence[str]) -> None:
    for start in range(0, len(paths), PATHS_AT_ONCE):
        names = ", ".join("'" + path.replace("'", "''") + "'" for path in paths[start : start + PATHS_AT_ONCE])
        lance.dataset(str(directory / CLIPS)).delete(f"path in ({names})")


@dataclass(frozen=True)
class _Part:
    """One span of a file as read: its clip, or why there is none."""

    path: str
    start_s: float
    end_s: float
    clip: Clip | str


def _add(
    directory: Path, folder: Path, files: Mapping[str, tuple[int, int]], embedder: Embedder, longest: float
) -> dict[str, str]:
    """Add the clips of `files`, all of a file or none; those that can't be used, with the reason."""
    rejects: dict[str, str] = {}
    rows = _Rows(directory, embedder)
    parts = groupby(_read_parts(folder, list(files), embedder, longest), key=lambda part: part.path)
    for path, of_file in track(parts, len(files), "files"):
        size, modified = files[path]
        for part in of_file:
            if isinstance(part.clip, str):
                rejects[_printable(path)] = part.clip
                rows.drop(path)
                break
            facts = {"path": path, "bytes": size, "modified_ns": modified}
            rows.add(facts | {"start_s": part.start_s, "end_s": part.end_s}, part.clip)
        if len(rows) >= CLIPS_PER_COMMIT:
            rows.write()
    rows.write()
    return rejects


def _read_parts(folder: Path, paths: Sequence[str], embedder: Embedder, longest: float) -> Iterator[_Part]:
    """The parts of each file, in order; little more than one at a time is held in memory."""

    def divide(path: str) -> list[_Part]:
        if not is_unicode(path):
            return [_Part(path, 0.0, 0.0, "bad_name: the name of the file isn't UTF-8")]
        try:
            seconds = duration_s(folder / path, embedder.inference.clips.limits)
        except MediaError as error:
            return [_Part(path, 0.0, 0.0, str(error))]
        return [_Part(path, start_s, end_s, "") for start_s, end_s in spans(seconds, longest)]

    def read(part: _Part) -> _Part:
        if part.clip:
            return part
        try:
            return replace(part, clip=embedder.read(folder / part.path, part.start_s, part.end_s))
        except MediaError as error:
            return replace(part, clip=str(error))

    yield from _read_ahead(read, chain.from_iterable(_read_ahead(divide, paths)))


def _printable(path: str) -> str:
    """A name that isn't UTF-8 with question marks."""
    return path.encode(errors="replace").decode()


def _read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """What `read` makes of each item, in order, by a thread per core that is a few items ahead."""
    with ThreadPoolExecutor(cores := len(os.sched_getaffinity(0))) as pool:
        ahead: deque[Future[Result]] = deque()
        for item in items:
            ahead.append(pool.submit(read, item))
            if len(ahead) > 2 * cores:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


class _Rows:
    """Rows on their way into the index: clips are embedded as soon as there are enough, and written by one commit."""

    def __init__(self, directory: Path, embedder: Embedder) -> None:
        self._directory = directory
        self._embedder = embedder
        self._waiting: list[tuple[dict[str, Any], Clip]] = []
        self._finished: list[dict[str, Any]] = []

    def __len__(self) -> int:
        return len(self._waiting) + len(self._finished)

    def add(self, facts: dict[str, Any], clip: Clip) -> None:
        """Take a clip, of which `facts` are stored."""
        self._waiting.append((facts, clip))
        if len(self._waiting) == CLIPS_AT_ONCE:
            self._embed()

    def drop(self, path: str) -> None:
        """Forget the clips of a file."""
        self._waiting = [row for row in self._waiting if row[0]["path"] != path]
        self._finished = [row for row in self._finished if row["path"] != path]

    def write(self) -> None:
        """Append everything to the index."""
        self._embed()
        if not self._finished:
            return
        table = pa.Table.from_pylist(self._finished, schema(len(self._finished[0]["both"])))
        clips = self._directory / CLIPS
        lance.write_dataset(table, str(clips), mode="append" if clips.is_dir() else "create")
        self._finished = []

    def _embed(self) -> None:
        if not self._waiting:
            return
        vectors = self._embedder.embed_by_modality([clip for _, clip in self._waiting])
        present = {modality: (vectors[modality] != 0).any(axis=1).tolist() for modality in MODALITIES}
        for place, (facts, clip) in enumerate(self._waiting):
            embedded = {m: vectors[m][place] if present[m][place] else None for m in MODALITIES}
            self._finished.append(facts | _shown(clip, self._embedder.sample_rate) | embedded)
        self._waiting = []


def _shown(clip: Clip, sample_rate: int) -> dict[str, Any]:
    """Small pictures and an excerpt of the sound."""
    preview = make_preview(clip, sample_rate)
    return {"pictures": list(preview.pictures), "sound": preview.sound}


def schema(width: int) -> pa.Schema:
    """Of the clips, with vectors of `width` numbers."""
    return pa.schema(
        [
            ("path", pa.string()),  # relative to the folder
            ("bytes", pa.int64()),
            ("modified_ns", pa.int64()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("pictures", pa.list_(pa.binary())),  # JPEG
            ("sound", pa.binary()),  # MP3; null without an audio stream
            *((modality, pa.list_(pa.float32(), width)) for modality in MODALITIES),  # null where a clip lacks it
        ]
    )


def index_vectors(dataset: Any) -> None:
    """Make the vector index of every modality with enough vectors for one; fewer are compared exactly."""
    for column in MODALITIES:
        present = dataset.count_rows(filter=f"{column} is not null")
        if present > EXACT_UP_TO:
            parts = round(math.sqrt(present) / 2)  # large parts: few to learn, and few that hold a neighbour unseen
            dataset.create_index(column, "IVF_FLAT", metric="dot", num_partitions=parts, replace=True)


class Index:
    """An index that `build` made, opened to be searched.

    Raises:
        ValueError: there is none in `directory`.
    """

    def __init__(self, directory: Path) -> None:
        about = _read_about(directory)
        if about is None or not (directory / CLIPS).is_dir():
            raise ValueError(f"there is no index in {directory}: `clip4vla index FOLDER --index {directory}` makes one")
        self._directory = directory
        self.model, self.folder = about
        self._clips = lance.dataset(str(directory / CLIPS))

    def __len__(self) -> int:
        return int(self._clips.count_rows())

    @cached_property
    def embedder(self) -> Embedder:
        """The model that the index was built with, loaded when it is first needed."""
        return Embedder.open(self._directory / MODEL, self.model.inference)

    @cached_property
    def _encode(self) -> Callable[[str, str | None], NDArray[np.float32]]:
        """The vector (D,) of a sentence for an expert; those of the latest sentences are kept."""
        return lru_cache(SENTENCES_KEPT)(lambda sentence, expert: self.embedder.encode_text([sentence], expert)[0])

    def search(self, sentence: str, top: int, by: Modality = "both", listen: Listen | None = None) -> list[Hit]:
        """The `top` clips that match `sentence` best, the best first.

        Args:
            sentence: what to search for.
            top: how many clips.
            by: the modality that must match; with `both`, a model with experts weighs them by the sentence.
            listen: the one expert that must match, in place of the weights of the sentence.

        Raises:
            ValueError: the sentence is empty, or the model has no such expert.
        """
        if not sentence.strip():
            raise ValueError("there is nothing to search for")
        query = self._encode(sentence, None if listen is None else EXPERT_OF[listen])
        return nearest(self._clips, query, top, by if listen is None else MODALITY_OF[listen])

    def search_like(self, example: Clip, top: int, by: Modality = "both", listen: Listen | None = None) -> list[Hit]:
        """The `top` clips that are most like `example`, by what it has: a sound is compared with sounds.

        Their scores are cosines; with experts, means of the cosines by expert.

        Args:
            example: a clip that the `embedder` reads.
            top, by, listen: as in `search`; each expert has the same weight.

        Raises:
            ValueError: the example has no sound, or no picture, to compare, or the model has no such expert.
        """
        vectors = {m: vector[0] for m, vector in self.embedder.embed_by_modality([example]).items()}
        if listen is not None:
            by = MODALITY_OF[listen]
        elif by == "both" and not (vectors["video"].any() and vectors["audio"].any()):
            by = "video" if vectors["video"].any() else "audio"
        query = vectors[by] if listen is None else vectors[by] * self.embedder.expert_mask(EXPERT_OF[listen])
        if not query.any():
            raise ValueError(f"the example has no {'picture' if by == 'video' else 'sound'} to compare")
        return nearest(self._clips, query / (query @ query), top, by)

    def listens_for(self, sentence: str, listen: Listen | None = None) -> dict[str, float]:
        """The weights of a search by what is listened for, largest first; empty where the model has no experts.

        Args:
            sentence: what is searched for.
            listen: the one expert that must match, in place of the weights of the sentence.
        """
        if not self.embedder.experts:
            return {}
        if listen is not None:
            return {listen: 1.0}
        parts = self._encode(sentence, None).reshape(len(self.embedder.experts), -1)
        lengths = np.linalg.norm(parts, axis=1)  # of an expert's part, in proportion to its weight
        weights = zip(self.embedder.experts, (lengths / lengths.sum()).tolist(), strict=True)
        return {EXPERT_LABELS.get(name, name): weight for name, weight in sorted(weights, key=lambda pair: -pair[1])}

    def listens_for_like(self, example: Clip, listen: Listen | None = None) -> dict[str, float]:
        """The same of `search_like`: equal weights of what the example has."""
        if listen is not None or not self.embedder.experts:
            return self.listens_for("", listen)
        has = {
            expert: example.frames if expert == "video" else example.audio is not None
            for expert in self.embedder.experts
        }
        present = [EXPERT_LABELS.get(expert, expert) for expert, is_there in has.items() if is_there]
        return dict.fromkeys(present, 1 / len(present)) if present else {}

    def preview(self, row: int) -> Preview:
        """Small pictures and an excerpt of the sound of the clip of a `Hit`.

        Raises:
            LookupError: there is no such row.
        """
        found = self._take(row, "pictures", "sound")
        return Preview(tuple(found["pictures"]), found["sound"])

    def file(self, row: int) -> Path:
        """The file of the clip of a `Hit`, as it was indexed.

        Raises:
            LookupError: there is no such row, or the file is gone or another one.
        """
        found = self._take(row, "path", "bytes", "modified_ns")
        path = self.folder / found["path"]
        if not path.is_file() or _state(path) != (found["bytes"], found["modified_ns"]):
            raise LookupError(f"{found['path']} has changed since it was indexed: run `clip4vla index` again")
        return path

    def _take(self, row: int, *columns: str) -> dict[str, Any]:
        for found in self._clips.to_table(columns=list(columns), filter=f"_rowid = {row}").to_pylist():
            return dict(found)
        raise LookupError(f"the index has no clip {row}")


def nearest(dataset: Any, query: NDArray[np.float32], top: int, by: Modality) -> list[Hit]:
    """The `top` clips whose vector by a modality has the largest inner product with `query` (D,)."""
    wanted = {"column": by, "q": query, "k": top, "metric": "dot", "nprobes": PROBES}
    columns = [*SHOWN, *MODALITIES, "_distance", "_rowid"]
    table = dataset.to_table(columns=columns, nearest=wanted, filter=f"{by} is not null")
    hits = [_hit(row, query) for row in table.to_pylist()]
    return sorted(hits, key=lambda hit: -hit.scores[by])


def _hit(row: Mapping[str, Any], query: NDArray[np.float32]) -> Hit:
    scores = {m: float(query @ np.array(row[m], np.float32)) for m in MODALITIES if row[m] is not None}
    return Hit(row["_rowid"], row["path"], row["start_s"], row["end_s"], scores, tuple(row["pictures"]), row["sound"])
