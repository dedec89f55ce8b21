"""The type-token probe: which of a clip's sound and spoken words does its audio embedding find?

Caption clips of StampScenes hold one of each, so a token that tells the tower what to listen for shows here.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

KINDS = {"sound": "nonverbal", "speech": "verbal"}
"""What can be found, and the audio type whose own kind it is."""


@dataclass(frozen=True)
class Labels:
    """What there is to find among, and what is right for each clip."""

    choices: dict[str, tuple[str, ...]]
    """All texts of a kind, `sound` and `speech`."""
    clips: dict[str, dict[str, str]]
    """The right text of each kind by clip id."""

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
            raise ValueError(f"{path} holds no probe labels, which evaluate.labels asks for: {error!r}") from error


def probe_scores(
    token: str,
    audio: NDArray[np.float32],
    clip_ids: Sequence[str],
    texts: Mapping[str, NDArray[np.float32]],
    labels: Labels,
) -> dict[str, float]:
    """Per cent of clips whose nearest text of each kind is the right one: `probe/TOKEN/KIND/R@1`.

    Only clips that have labels count, since other corpora may be tested along; without any there are no values.

    Args:
        token: what the tower was told to listen for.
        audio: (G, D) unit vectors.
        clip_ids: (G,)
        texts: (N, D) unit vectors of the choices of each kind.
    """
    labelled = [row for row, clip_id in enumerate(clip_ids) if clip_id in labels.clips]
    if not labelled:
        return {}
    values = {}
    for kind, vectors in texts.items():
        right = np.array([labels.choices[kind].index(labels.clips[clip_ids[row]][kind]) for row in labelled])
        found = (audio[labelled] @ vectors.T).argmax(axis=1)
        values[f"probe/{token}/{kind}/R@1"] = float(100 * (found == right).mean())
    return values
