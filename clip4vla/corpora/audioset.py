"""AudioSet (Gemmeke et al., ICASSP 2017): what sounds in 10 s of YouTube videos, as labels that become a sentence.

`balanced_train_segments.csv`, `unbalanced_train_segments.csv` and `eval_segments.csv` have comments after # and rows
`YTID, start_seconds, end_seconds, "/m/09x0r,/t/dd00088"`; `class_labels_indices.csv` names the labels in columns
`index, mid, display_name`. The sentence is "the sound of Speech, Gush": about everything but the words said.
"""

from collections.abc import Iterator
from pathlib import Path

from clip4vla.corpora.base import make_excerpt, parse_seconds
from clip4vla.corpora.tables import Row, read_csv
from clip4vla.records import Reject, SourceRecord, Split, Text

FILES: tuple[tuple[str, Split], ...] = (
    ("balanced_train_segments.csv", "train"),
    ("unbalanced_train_segments.csv", "train"),
    ("eval_segments.csv", "test"),
)
COLUMNS = ["YTID", "start_seconds", "end_seconds", "positive_labels"]


def read(annotations: Path) -> Iterator[SourceRecord | Reject]:
    """Yield the clips of the files that are there; see `base.Adapter`."""
    files = [(annotations / name, split) for name, split in FILES if (annotations / name).exists()]
    if not files:
        raise ValueError(f"{annotations} has none of {', '.join(name for name, _ in FILES)}")
    rows = read_csv(annotations / "class_labels_indices.csv", ("mid", "display_name"))
    names = {row.cells["mid"]: row.cells["display_name"] for row in rows}
    for file, split in files:
        for row in read_csv(file, header=COLUMNS):
            yield _clip(row, split, names)


def _clip(row: Row, split: Split, names: dict[str, str]) -> SourceRecord | Reject:
    youtube_id, start, end = (row.cells[column].strip() for column in COLUMNS[:3])
    labels = [label.strip() for label in row.cells["positive_labels"].split(",") if label.strip()]
    clip_id = f"{youtube_id}_{start}"
    unknown = [label for label in labels if label not in names]
    if unknown:
        return Reject(clip_id, youtube_id, split, "unknown_label", f"{row.where}: {', '.join(unknown)}")
    texts = [Text(f"the sound of {', '.join(names[label] for label in labels)}", "nonverbal")] if labels else []
    return make_excerpt(clip_id, youtube_id, split, texts, (parse_seconds(start), parse_seconds(end)), row.where)
