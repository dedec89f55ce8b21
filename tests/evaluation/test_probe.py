"""The type-token probe: the nearest text of a kind to the audio of a clip, over clips that have labels."""

import numpy as np

from clip4vla.evaluation.labels import Labels
from clip4vla.evaluation.probe import probe_scores

LABELS = Labels(
    {"sound": ("moo", "bell"), "speech": ("uno", "dos", "tres")},
    {"a": {"sound": "moo", "speech": "tres"}, "b": {"sound": "bell", "speech": "uno"}},
)
TEXTS = {"sound": np.eye(5, dtype=np.float32)[:2], "speech": np.eye(5, dtype=np.float32)[2:]}
AUDIO = np.array(
    [
        [0.9, 0.1, 0.0, 0.0, 0.8],  # a: moo, tres
        [0.9, 0.1, 0.5, 0.2, 0.1],  # b: moo instead of bell, uno
        [0.0, 0.9, 0.0, 0.9, 0.0],  # another corpus' clip, which has no labels
    ],
    np.float32,
)


def test_the_nearest_text_of_each_kind_is_right_or_not() -> None:
    found = probe_scores("verbal", AUDIO[:2], ["a", "b"], TEXTS, LABELS)
    assert found == {"probe/verbal/sound/R@1": 50.0, "probe/verbal/speech/R@1": 100.0}


def test_clips_without_labels_do_not_count() -> None:
    assert probe_scores("none", AUDIO, ["a", "b", "other"], TEXTS, LABELS) == probe_scores(
        "none", AUDIO[:2], ["a", "b"], TEXTS, LABELS
    )
    assert probe_scores("none", AUDIO[2:], ["other"], TEXTS, LABELS) == {}
