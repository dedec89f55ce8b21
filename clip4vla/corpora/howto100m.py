"""HowTo100M (Miech et al., ICCV 2019): instructional videos with what is said in them, by speech recognition.

`HowTo100M_v1.csv` (column `video_id`) says which entries there are: cut it down to pretrain on a part. What is said
comes from the first of `raw_caption_superclean.json`, `raw_caption.json` and `caption.json` (without stop words) that
is there: an object with `start`, `end` and `text` lists by video id, read as a stream.

Captions last a few seconds and overlap. A caption shorter than MIN_SECONDS is merged with the neighbour that gives the
shorter span, the left one if both do the same, until it is long enough or all that is said in the video.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clip4vla.corpora.base import parse_seconds
from clip4vla.corpora.tables import read_csv, read_json_members
from clip4vla.records import Reject, SourceRecord, Text

MIN_SECONDS = 10.0
CAPTION_FILES = ("raw_caption_superclean.json", "raw_caption.json", "caption.json")


@dataclass(frozen=True)
class Caption:
    """What is said from `start_s` to `end_s`."""

    start_s: float
    end_s: float
    text: str

    def has_span(self) -> bool:
        """Whether it begins somewhere and doesn't end before."""
        return 0 <= self.start_s <= self.end_s < math.inf


def read(annotations: Path) -> Iterator[SourceRecord | Reject]:
    """Yield the merged captions of every listed video; see `base.Adapter`."""
    list_file = annotations / "HowTo100M_v1.csv"
    file = next((annotations / name for name in CAPTION_FILES if (annotations / name).exists()), None)
    if file is None:
        raise ValueError(f"{annotations} has neither {' nor '.join(CAPTION_FILES)}")
    waiting: dict[str, str] = {}
    for row in read_csv(list_file, ("video_id",)):
        video_id = row.cells["video_id"].strip()
        if video_id in waiting:
            yield Reject(video_id, video_id, "train", "duplicate", f"{row.where}: it is at {waiting[video_id]}, too")
        else:
            waiting[video_id] = row.where
    for video_id, said in read_json_members(file):
        if waiting.pop(video_id, None) is not None:
            yield from _clips(video_id, said, f"{file}: {video_id}")
    for video_id, where in waiting.items():
        yield Reject(video_id, video_id, "train", "no_caption", where)


def _clips(video_id: str, said: Any, where: str) -> Iterator[SourceRecord | Reject]:
    captions = _captions(said)
    if captions is None:
        yield Reject(video_id, video_id, "train", "bad_captions", f"{where}: no start, end and text of equal lengths")
        return
    if not captions:
        yield Reject(video_id, video_id, "train", "no_caption", where)
    for caption in captions:
        if not caption.has_span():
            detail = f"{where}: {caption.start_s} to {caption.end_s} s: {caption.text}"
            yield Reject(f"{video_id}_{caption.start_s}", video_id, "train", "bad_span", detail)
    for merged in merge_captions([caption for caption in captions if caption.has_span()]):
        clip_id = f"{video_id}_{merged.start_s:.3f}_{merged.end_s:.3f}"
        if merged.start_s == merged.end_s:
            yield Reject(clip_id, video_id, "train", "bad_span", f"{where}: all that is said lasts no time")
        else:
            text = Text(merged.text, "verbal")
            yield SourceRecord(clip_id, video_id, "train", (text,), merged.start_s, merged.end_s)


def _captions(said: Any) -> list[Caption] | None:
    """The captions of a video; what is no text (NaN where nothing was recognised) says nothing."""
    columns = [said.get(key) for key in ("start", "end", "text")] if isinstance(said, dict) else []
    lists = [values for values in columns if isinstance(values, list)]
    if len(lists) < 3 or len({len(values) for values in lists}) > 1:
        return None
    return [
        Caption(parse_seconds(start), parse_seconds(end), text if isinstance(text, str) else "")
        for start, end, text in zip(*lists, strict=True)
    ]


def merge_captions(captions: list[Caption], min_seconds: float = MIN_SECONDS) -> list[Caption]:
    """Captions in order of time, each lasting `min_seconds` or all that is said."""
    merged = sorted(captions, key=lambda caption: (caption.start_s, caption.end_s))
    place = 0
    while place < len(merged):
        caption = merged[place]
        if caption.end_s - caption.start_s >= min_seconds or len(merged) == 1:
            place += 1
            continue
        left = _join(merged[place - 1], caption) if place > 0 else None
        right = _join(caption, merged[place + 1]) if place + 1 < len(merged) else None
        if left and (right is None or left.end_s - left.start_s <= right.end_s - right.start_s):
            place -= 1
            merged[place : place + 2] = [left]
        elif right:
            merged[place : place + 2] = [right]
    return merged


def _join(first: Caption, second: Caption) -> Caption:
    text = " ".join(part.strip() for part in (first.text, second.text) if part.strip())
    return Caption(first.start_s, max(first.end_s, second.end_s), text)
