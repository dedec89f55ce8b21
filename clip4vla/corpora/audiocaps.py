"""AudioCaps (Kim et al., NAACL 2019): sentences about 10 s of sound in YouTube videos.

`train.csv`, `val.csv` and `test.csv` have columns `audiocap_id, youtube_id, start_time, caption` and a row per
sentence: one a clip in training, five otherwise. Some tools name the file of a clip by the `audiocap_id` of one of
its sentences. As first published, `train.csv` of version 2 has line breaks in captions without quotes: they are joined.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from clip4vla.corpora.base import Excerpt, make_excerpt, parse_seconds
from clip4vla.corpora.tables import Row, read_csv
from clip4vla.records import SPLITS, Reject, SourceRecord, Split, Text

SECONDS = 10.0


def read(annotations: Path) -> Iterator[SourceRecord | Reject]:
    """Yield the clips of the files that are there; see `base.Adapter`."""
    files = [(annotations / f"{split}.csv", split) for split in SPLITS]
    if not any(file.exists() for file, _ in files):
        raise ValueError(f"{annotations} has none of train.csv, val.csv and test.csv")
    for file, split in files:
        if file.exists():
            yield from _read_file(file, split)


def _read_file(file: Path, split: Split) -> Iterator[SourceRecord | Reject]:
    clips: dict[tuple[str, str], list[Row]] = {}
    for row in read_csv(file, ("youtube_id", "start_time", "caption"), joins_lines=True):
        clips.setdefault((row.cells["youtube_id"].strip(), row.cells["start_time"].strip()), []).append(row)
    for (youtube_id, start), rows in clips.items():
        texts = [Text(row.cells["caption"], "nonverbal") for row in rows]
        start_s = parse_seconds(start)
        span = (start_s, start_s + SECONDS)
        clip = make_excerpt(f"{youtube_id}_{start}", youtube_id, split, texts, span, rows[0].where)
        yield _also_named(clip, rows) if isinstance(clip, Excerpt) else clip


def _also_named(clip: Excerpt, rows: list[Row]) -> Excerpt:
    ids = (row.cells.get("audiocap_id", "").strip() for row in rows)
    return replace(clip, cut_names=(*clip.cut_names, *filter(None, ids)))
