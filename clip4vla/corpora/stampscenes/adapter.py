"""The pretraining half of StampScenes: `stampscenes.json`, a text of known audio type per clip."""

import json
from collections.abc import Iterator
from pathlib import Path

from clip4vla.records import Reject, SourceRecord, Text


def read(annotations: Path) -> Iterator[SourceRecord | Reject]:
    """Yield the clips of `annotations/stampscenes.json`; see `base.Adapter`."""
    file = annotations / "stampscenes.json"
    try:
        rows = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file}: {error}") from error
    for index, row in enumerate(rows):
        try:
            yield SourceRecord(row["clip_id"], row["video"], row["split"], (Text(row["text"], row["audio_type"]),))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{file}: entry {index} lacks {error}") from error
