"""AudioSet (Gemmeke et al., ICASSP 2017): what sounds in 10 s of YouTube videos, as labels that become a sentence.

`balanced_train_segments.csv`, `unbalanced_train_segments.csv` and `eval_segments.csv` have comments after # and rows
`YTID, start_seconds, end_seconds, "/m/09x0r,/t/dd00088"`; `class_labels_indices.csv` names the labels in columns
`index, mid, display_name`, and `ontology.json` (a list of `id, name, ...`) those that it lacks, or all of them. The
sentence is "the sound of Speech, Gush": about everything but the words said.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from clip4vla.corpora.base import make_excerpt, parse_seconds
from clip4vla.corpora.tables import Row, place_of_item, read_csv, read_json
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
    names = _read_names(annotations)
    for file, split in files:
        for row in read_csv(file, header=COLUMNS):
            yield _clip(row, split, names)


def _read_names(annotations: Path) -> dict[str, str]:
    """What each label is called."""
    labels, ontology = annotations / "class_labels_indices.csv", annotations / "ontology.json"
    if not labels.exists() and not ontology.exists():
        raise ValueError(f"{annotations} has neither {labels.name} nor {ontology.name}, which name the labels")
    names = _read_ontology(ontology) if ontology.exists() else {}
    if labels.exists():
        names |= {row.cells["mid"]: row.cells["display_name"] for row in read_csv(labels, ("mid", "display_name"))}
    return names


def _read_ontology(file: Path) -> dict[str, str]:
    tree = read_json(file)
    if not isinstance(tree, list):
        raise ValueError(f"{file}:1: not a list of labels")
    for index, item in enumerate(tree):
        if not isinstance(item, dict) or not all(isinstance(item.get(key), str) for key in ("id", "name")):
            where = place_of_item(file, index)
            raise ValueError(f"{where}: label {index} has no 'id' and 'name': {json.dumps(item)[:200]}")
    return {item["id"]: item["name"] for item in tree}


def _clip(row: Row, split: Split, names: dict[str, str]) -> SourceRecord | Reject:
    youtube_id, start, end = (row.cells[column].strip() for column in COLUMNS[:3])
    labels = [label.strip() for label in row.cells["positive_labels"].split(",") if label.strip()]
    clip_id = f"{youtube_id}_{start}"
    unknown = [label for label in labels if label not in names]
    if unknown:
        return Reject(clip_id, youtube_id, split, "unknown_label", f"{row.where}: {', '.join(unknown)}")
    texts = [Text(f"the sound of {', '.join(names[label] for label in labels)}", "nonverbal")] if labels else []
    return make_excerpt(clip_id, youtube_id, split, texts, (parse_seconds(start), parse_seconds(end)), row.where)
