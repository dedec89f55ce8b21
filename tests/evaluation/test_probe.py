"""What each type token hears: the nearest text of a kind, among clips that have labels."""

import json
from pathlib import Path

import numpy as np
import pytest

from clip4vla.evaluation.probe import Labels, probe_scores

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


def test_labels_are_read_or_it_is_said_who_asked_for_them(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps({**LABELS.choices, "clips": LABELS.clips}))
    assert Labels.read(path) == LABELS
    path.write_text("{}")
    for wrong in (path, tmp_path / "missing.json"):
        with pytest.raises(ValueError, match=r"json holds no probe labels, which evaluate\.labels asks for"):
            Labels.read(wrong)
