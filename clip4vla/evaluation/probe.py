"""The type-token probe: how often the audio embedding of a clip is nearest to its own sound, and to its own words.

Caption clips of StampScenes hold one sound effect and one spoken word each, so that the effect of the type token on the
audio tower can be measured.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clip4vla.evaluation.labels import Labels


def probe_scores(
    token: str,
    audio: NDArray[np.float32],
    clip_ids: Sequence[str],
    texts: Mapping[str, NDArray[np.float32]],
    labels: Labels,
) -> dict[str, float]:
    """Per cent of clips whose nearest text of each kind is the right one: `probe/TOKEN/KIND/R@1`.

    Only clips with a label of the kind count: other corpora have none, nor have clips without an audio track.

    Args:
        token: the type token that `audio` was computed with.
        audio: (G, D) unit vectors.
        clip_ids: (G,)
        texts: (N, D) unit vectors of the choices of each kind.
        labels: the choices and the right ones.
    """
    values = {}
    for kind, vectors in texts.items():
        labelled = [row for row, clip_id in enumerate(clip_ids) if kind in labels.clips.get(clip_id, {})]
        if not labelled:
            continue
        right = np.array([labels.choices[kind].index(labels.clips[clip_ids[row]][kind]) for row in labelled])
        found = (audio[labelled] @ vectors.T).argmax(axis=1)
        values[f"probe/{token}/{kind}/R@1"] = float(100 * (found == right).mean())
    return values
