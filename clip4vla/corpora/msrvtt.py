"""MSR-VTT (Xu et al., CVPR 2016): `MSRVTT_data.json` or `videodatainfo_*.json`.

`videos` has an item per clip with `video_id` and `split` (train, validate, test), `sentences` one per caption with
`video_id` and `caption`.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip4vla.records import Reject, SourceRecord, Split, Text

SPLITS: dict[str, Split] = {"train": "train", "validate": "val", "val": "val", "test": "test"}
PATTERNS = ("MSRVTT_data.json", "*videodatainfo*.json")


def read(annotations: Path) -> Iterator[SourceRecord | Reject]:
    """Yield the clips of every annotation file under `annotations`; see `base.Adapter`."""
    files = sorted({file for pattern in PATTERNS for file in annotations.glob(pattern)})
    if not files:
        raise ValueError(f"{annotations} has neither MSRVTT_data.json nor a *videodatainfo*.json")
    for file in files:
        yield from _read_file(file)


def _read_file(file: Path) -> Iterator[SourceRecord | Reject]:
    tree = _load(file)
    captions: dict[str, list[Text]] = defaultdict(list)
    for index, sentence in enumerate(tree["sentences"]):
        video_id, caption = _field(sentence, "video_id", file, index), _field(sentence, "caption", file, index)
        captions[video_id].append(Text(caption))
    for index, video in enumerate(tree["videos"]):
        video_id, split = _field(video, "video_id", file, index), _field(video, "split", file, index)
        texts = tuple(captions.pop(video_id, ()))
        if split not in SPLITS:
            yield Reject(video_id, video_id, split, "unknown_split", f"{file}: split {split!r}")
        else:
            yield SourceRecord(video_id, video_id, SPLITS[split], texts)
    for video_id, texts_left in captions.items():
        yield Reject(video_id, video_id, "", "unknown_video", f"{file}: {len(texts_left)} sentences, no such video")


def _load(file: Path) -> dict[str, Any]:
    try:
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: not valid JSON: {error}") from error
    for key in ("videos", "sentences"):
        if not isinstance(tree, dict) or not isinstance(tree.get(key), list):
            raise ValueError(f"{file}: no list {key!r}; MSR-VTT's schema has videos and sentences")
    return tree


def _field(item: Any, key: str, file: Path, index: int) -> str:
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, str) or not value:
        raise ValueError(f"{file}: entry {index} has no {key!r}: {json.dumps(item)[:200]}")
    return value
