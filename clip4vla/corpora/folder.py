"""Your own media: one or more `.csv` or `.jsonl` files that say which texts belong to which files.

Columns (keys): `path` and `text`; if wanted `start` and `end` (seconds into the file), `split` (train, val, test) and
`audio_type` (verbal: the words said, nonverbal: other sounds). Rows of the same path and span are texts of one clip.
A clip without a split gets one by the SHA-256 of its path: 80 % train, 10 % val, 10 % test, the same on any machine
and for all clips of a file, however its path is spelled (`x`, `x.flac`, `./x.flac`). Where fewer than two files fall
into val or test, others come there from train: to find the only clip there is can't fail.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain, product
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from clip4vla.corpora.base import parse_seconds
from clip4vla.corpora.media_index import AUDIO_SUFFIXES, VIDEO_SUFFIXES, same_name
from clip4vla.corpora.tables import Row, read_csv, read_json_lines
from clip4vla.records import SPLITS, AudioType, Reject, SourceRecord, Split, Text
from clip4vla.utils.hashing import hash_text

COLUMNS = ("path", "text", "start", "end", "split", "audio_type")
REQUIRED = COLUMNS[:2]
LEAST = 2
"""Files that val and test have at least, where they aren't given and there are enough."""

Clips = dict[tuple[str, float, float | None], "_Clip"]
"""By path and span."""


@dataclass
class _Clip:
    """What the rows of one path and span have said so far."""

    split: Split
    where: str
    by_hash: bool
    """Whether no row says which split."""
    texts: list[Text] = field(default_factory=list)


def read(annotations: Path) -> Iterator[SourceRecord | Reject]:
    """Yield the clips of all tables in `annotations`; see `base.Adapter`."""
    tables = [read_csv(file, REQUIRED) for file in sorted(annotations.glob("*.csv"))]
    tables += [read_json_lines(file, REQUIRED) for file in sorted(annotations.glob("*.jsonl"))]
    if not tables:
        raise ValueError(f"{annotations} has neither a .csv nor a .jsonl file")
    clips: Clips = {}
    for row in chain.from_iterable(tables):
        reject = _add(row, clips)
        if reject:
            yield reject
    clips = _join_spellings(clips)
    _fill_splits(clips)
    for (path, start_s, end_s), clip in clips.items():
        yield SourceRecord(_clip_id(path, start_s, end_s), path, clip.split, tuple(clip.texts), start_s, end_s)


def _add(row: Row, clips: Clips) -> Reject | None:
    """Add the row to its clip, or say why it can't be."""
    unknown = [str(key) for key in row.cells if key not in COLUMNS]
    if unknown:
        raise ValueError(f"{row.where}: unknown column {', '.join(unknown)}; there are {', '.join(COLUMNS)}")
    cells = {key: _blank_to_none(row.cells.get(key)) for key in COLUMNS}
    path, text = cells["path"], cells["text"]
    split = cells["split"] or (split_of(path) if isinstance(path, str) else "")
    start_s = 0.0 if cells["start"] is None else parse_seconds(cells["start"])
    end_s = None if cells["end"] is None else parse_seconds(cells["end"])

    def reject(reason: str, detail: object) -> Reject:
        return Reject(str(path or ""), str(path or ""), str(split), reason, f"{row.where}: {detail}")

    if not isinstance(path, str):
        return reject("no_path", path)
    if not isinstance(text, str):
        return reject("no_text", text)
    if split not in SPLITS:
        return reject("unknown_split", split)
    if cells["audio_type"] not in (None, *get_args(AudioType)):
        return reject("unknown_audio_type", cells["audio_type"])
    if not 0 <= start_s < (float("inf") if end_s is None else end_s) or end_s == float("inf"):
        return reject("bad_span", f"{cells['start']} to {cells['end']}")
    clip = clips.setdefault((path, start_s, end_s), _Clip(split, row.where, by_hash=True))
    if clip.split != split:
        raise ValueError(f"{row.where}: {path} is in {split} here, but in {clip.split} at {clip.where}")
    clip.by_hash &= cells["split"] is None
    clip.texts.append(Text(text, cells["audio_type"]))
    return None


def _join_spellings(clips: Clips) -> Clips:
    """The clips with one path for each file that is spelled in several ways: the one that says most.

    Raises:
        ValueError: the same span is in two splits.
    """
    spellings: dict[str, set[str]] = defaultdict(set)
    names = {name for path, _, _ in clips if "/" not in (name := _without_suffix(path))}
    for path, _, _ in clips:
        name = _without_suffix(path)
        anywhere = name.rsplit("/", 1)[-1]
        spellings[anywhere if anywhere in names else name].add(path)
    fullest = {
        path: max(paths, key=lambda path: (len(same_name(path)), same_name(path), -len(path), path))
        for paths in spellings.values()
        for path in paths
    }
    joined: Clips = {}
    for (path, start_s, end_s), clip in clips.items():
        spelled = fullest[path]
        split = split_of(spelled) if clip.by_hash else clip.split
        first = joined.setdefault((spelled, start_s, end_s), _Clip(split, clip.where, clip.by_hash))
        if first.split != split:
            raise ValueError(f"{clip.where}: {path} is in {split} here, but in {first.split} at {first.where}")
        first.by_hash &= clip.by_hash
        first.texts += clip.texts
    return joined


def _without_suffix(path: str) -> str:
    name = PurePosixPath(same_name(path))
    return str(name.with_suffix("") if name.suffix.lower() in VIDEO_SUFFIXES | AUDIO_SUFFIXES else name)


def _fill_splits(clips: Clips) -> None:
    """Move files from train to test and val until these have LEAST, as long as train has more.

    A file goes there whole, and only if no row says where it belongs; the one with the highest hash goes first.
    """
    for least, split in product(range(1, LEAST + 1), SPLITS[:0:-1]):  # test before val
        files = {of: {path for (path, _, _), clip in clips.items() if clip.split == of} for of in SPLITS}
        given = {path for (path, _, _), clip in clips.items() if not clip.by_hash}
        if len(files[split]) < least < len(files["train"]) and files["train"] - given:
            moved = max(files["train"] - given, key=_hash)
            for (path, _, _), clip in clips.items():
                clip.split = split if path == moved else clip.split


def _blank_to_none(value: Any) -> Any:
    stripped = value.strip() if isinstance(value, str) else value
    return None if stripped == "" else stripped


def split_of(path: str) -> Split:
    """The split of a file among many that has none, by the hash of its path."""
    tenth = _hash(path) % 10
    return "test" if tenth == 9 else "val" if tenth == 8 else "train"


def _hash(path: str) -> int:
    return int(hash_text(path, digits=16), base=16)


def _clip_id(path: str, start_s: float, end_s: float | None) -> str:
    if start_s == 0 and end_s is None:
        return path
    return f"{path}#{start_s:g}-{'' if end_s is None else format(end_s, 'g')}"
