"""labels.json: read once, for the probe and for the slots of captions, or refused with its path and its setting."""

import json
from pathlib import Path

import pytest

from clip4vla.evaluation.labels import Labels

TREE = {
    "sound": ["the sound of a cow", "the sound of a bell"],
    "speech": ["uno", "dos"],
    "clips": {"video0": {"seen": "a dog", "sound": "the sound of a cow", "speech": "dos"}},
}


def test_choices_and_clips_are_read(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(TREE))
    labels = Labels.read(path)
    assert labels.choices == {"sound": ("the sound of a cow", "the sound of a bell"), "speech": ("uno", "dos")}
    assert labels.clips["video0"]["seen"] == "a dog"


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"sound": [], "speech": []}', '{"sound": 1}'])
def test_a_file_that_is_not_labels_is_named_with_its_setting(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "labels.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=rf"^{path}, named by evaluation\.labels, is not a labels file: "):
        Labels.read(path)
