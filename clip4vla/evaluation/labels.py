"""`labels.json`: what a caption clip shows, what is heard in it and what is said.

In: the file that a corpus leaves beside its annotations. Out: `Labels`, read once for the type-token probe and for the
slot accuracy of captions.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

KINDS = ("sound", "speech")
"""What the probe looks for."""
ROLES = ("seen", *KINDS)
"""What StampScenes has of a clip."""


@dataclass(frozen=True)
class Labels:
    """The texts that a probe chooses among, and the right ones of each clip."""

    choices: Mapping[str, tuple[str, ...]]
    """All texts of each kind in `KINDS`."""
    clips: Mapping[str, Mapping[str, str]]
    """By clip id, the right text of each role, such as those in `ROLES`."""

    @classmethod
    def read(cls, path: Path) -> "Labels":
        """Read a `labels.json`.

        Raises:
            ValueError: the file is missing or isn't one.
        """
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            return cls({kind: tuple(tree[kind]) for kind in KINDS}, tree["clips"])
        except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
            raise ValueError(f"{path}, named by evaluation.labels, is not a labels file: {error!r}") from error
