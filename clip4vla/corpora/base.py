"""What an adapter is, and where adapters are found by name.

An adapter reads its corpus' *published* annotation files and yields a `SourceRecord` per clip, or a `Reject` for an
entry that says nothing usable. It knows nothing of tasks, decoding or training, and looks at no media: a record's
`media` names a file under the media directory, with or without its suffix.
"""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from clip4vla.records import Reject, SourceRecord


class Adapter(Protocol):
    """Reads the annotation files under a directory."""

    def __call__(self, annotations: Path) -> Iterator[SourceRecord | Reject]:
        """Yield every entry once.

        Raises:
            ValueError: a file is missing or isn't in the published format; the message names file and place.
        """


ADAPTERS = {
    "stampscenes": "clip4vla.corpora.stampscenes.adapter",
    "msrvtt": "clip4vla.corpora.msrvtt",
}


def find_adapter(name: str) -> Adapter:
    """The `read` function of the module that is named `name` here.

    Raises:
        ValueError: there is no such adapter.
    """
    if name not in ADAPTERS:
        raise ValueError(f"there is no corpus adapter {name!r}; there are {', '.join(sorted(ADAPTERS))}")
    adapter: Adapter = importlib.import_module(ADAPTERS[name]).read
    return adapter
