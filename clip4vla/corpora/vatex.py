"""VATEX (Wang et al., ICCV 2019): ten English sentences about each 10 s of a YouTube video.

`vatex_training_v1.0.json`, `vatex_validation_v1.0.json`, `vatex_public_test_english_v1.1.json`: lists of `videoID`
(the YouTube id, then start and end in seconds, six digits each: `Ptf_2VRj-V0_000122_000132`), `enCap` and, but for
the test clips, `chCap`, which isn't read.

For retrieval, HGR (Chen et al., CVPR 2020) halves the 3,000 validation clips into validation and test; lists of ids
say how: `train_list.txt`, `val_list.txt`, `test_list.txt` with an id a line, or HGR's own `public_split/trn_names.npy`,
`val_names.npy`, `tst_names.npy`. The lists say which entries there are.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from clip4vla.corpora.base import make_excerpt
from clip4vla.corpora.tables import place_of_item, read_json, read_lines
from clip4vla.records import Reject, SourceRecord, Split, Text

FILES: tuple[tuple[str, Split], ...] = (
    ("vatex_training*.json", "train"),
    ("vatex_validation*.json", "val"),
    ("vatex_public_test*.json", "test"),
)
HGR_LISTS: tuple[tuple[str, str, Split], ...] = (
    ("train_list.txt", "public_split/trn_names.npy", "train"),
    ("val_list.txt", "public_split/val_names.npy", "val"),
    ("test_list.txt", "public_split/tst_names.npy", "test"),
)
VIDEO_ID = re.compile(r"(?P<youtube>.+)_(?P<start>\d{6})_(?P<end>\d{6})", re.DOTALL)


def read(annotations: Path) -> Iterator[SourceRecord | Reject]:
    """Yield the clips of the official splits whose files are there; see `base.Adapter`."""
    found = [(file, split) for pattern, split in FILES if (file := _find(annotations, pattern))]
    if not found:
        raise ValueError(f"{annotations} has none of {', '.join(pattern for pattern, _ in FILES)}")
    for file, split in found:
        for index, (video_id, texts) in enumerate(_read_file(file)):
            yield _clip(video_id, split, texts, f"{file}: entry {index}")


def read_hgr(annotations: Path) -> Iterator[SourceRecord | Reject]:
    """Yield the clips of the retrieval split; see `base.Adapter`."""
    captions: dict[str, tuple[Text, ...]] = {}
    for pattern, _ in FILES[:2]:
        file = _find(annotations, pattern)
        if file is None:
            raise ValueError(f"{annotations} has no {pattern}, which has the sentences of the retrieval split")
        captions |= _read_file(file)
    for lines, array, split in HGR_LISTS:
        file, ids = _read_list(annotations / lines, annotations / array)
        for index, video_id in enumerate(ids):
            yield _clip(video_id, split, captions.get(video_id, ()), f"{file}: entry {index}")


def _find(annotations: Path, pattern: str) -> Path | None:
    files = sorted(annotations.glob(pattern))
    if len(files) > 1:
        raise ValueError(f"{annotations} has more than one {pattern}: {', '.join(file.name for file in files)}")
    return files[0] if files else None


def _read_file(file: Path) -> Iterator[tuple[str, tuple[Text, ...]]]:
    tree = read_json(file)
    if not isinstance(tree, list):
        raise ValueError(f"{file}:1: not a list of clips")
    for index, item in enumerate(tree):
        yield _entry(item, file, index)


def _entry(item: Any, file: Path, index: int) -> tuple[str, tuple[Text, ...]]:
    """Id and sentences of a clip; the clips of a test that is kept secret have no `enCap`."""
    video_id = item.get("videoID") if isinstance(item, dict) else None
    captions = item.get("enCap", []) if isinstance(item, dict) else None
    if not isinstance(video_id, str):
        problem = "has no 'videoID'"
    elif not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        problem = "has an 'enCap' that is no list of sentences"
    else:
        return video_id, tuple(Text(caption) for caption in captions)
    raise ValueError(f"{place_of_item(file, index)}: entry {index} {problem}: {json.dumps(item)[:200]}")


def _clip(video_id: str, split: Split, texts: tuple[Text, ...], where: str) -> SourceRecord | Reject:
    parts = VIDEO_ID.fullmatch(video_id)
    if parts is None:
        return Reject(video_id, video_id, split, "bad_id", f"{where}: no _start_end of six digits each")
    return make_excerpt(video_id, parts["youtube"], split, texts, (float(parts["start"]), float(parts["end"])), where)


def _read_list(lines: Path, array: Path) -> tuple[Path, list[str]]:
    if lines.exists():
        return lines, read_lines(lines)
    if not array.exists():
        raise ValueError(f"{lines.parent} has neither {lines.name} nor {array.parent.name}/{array.name}")
    try:
        names = np.load(array, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"{array}:1: not a NumPy array of names: {error}; write them to {lines.name}") from error
    return array, [name.decode() if isinstance(name, bytes) else str(name) for name in np.ravel(names).tolist()]
