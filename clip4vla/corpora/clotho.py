"""Clotho (Drossos et al., ICASSP 2020): five sentences about each of some 6,000 sounds of 15 to 30 s.

`clotho_captions_development.csv`, `clotho_captions_validation.csv` and `clotho_captions_evaluation.csv` have columns
`file_name, caption_1, ..., caption_5` and a row for each sound. Version 1 has no validation file.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

from clip4vla.corpora.tables import read_csv
from clip4vla.records import Reject, SourceRecord, Split, Text

SPLITS_OF_FILES: Mapping[str, Split] = {"development": "train", "validation": "val", "evaluation": "test"}
CAPTIONS = tuple(f"caption_{number}" for number in range(1, 6))


def read(annotations: Path) -> Iterator[SourceRecord | Reject]:
    """Yield the sounds of the files that are there; see `base.Adapter`."""
    files = {part: annotations / f"clotho_captions_{part}.csv" for part in SPLITS_OF_FILES}
    if not any(file.exists() for file in files.values()):
        raise ValueError(f"{annotations} has none of {', '.join(file.name for file in files.values())}")
    for part, file in files.items():
        if file.exists():
            yield from _read_file(file, part)


def _read_file(file: Path, part: str) -> Iterator[SourceRecord | Reject]:
    split = SPLITS_OF_FILES[part]
    for row in read_csv(file, ("file_name", *CAPTIONS)):
        name = row.cells["file_name"].strip()
        if not name:
            yield Reject("", name, split, "no_id", row.where)
            continue
        texts = tuple(Text(row.cells[caption], "nonverbal") for caption in CAPTIONS)
        yield SourceRecord(f"{part}/{name}", name, split, texts)
