"""The labels behind captions, and the captions that are kept."""

import json
from pathlib import Path

import pytest

from clip4vla.config import Config, load_config
from clip4vla.evaluation.caption_evaluator import Captions
from clip4vla.pipeline.evaluate import read_labels, write_captions
from tests.project import REPOSITORY

CONFIG = load_config(REPOSITORY / "params.yaml")
RIGHT = {"clip1": {"seen": "a cow", "sound": "the sound of a dog", "speech": "un mirlo"}}


def with_labels(path: Path | None) -> Config:
    changes = {"labels": None if path is None else str(path), "bootstrap": 100}
    return CONFIG.model_copy(update={"evaluation": CONFIG.evaluation.model_copy(update=changes)})


@pytest.fixture
def captions() -> Captions:
    clips = [f"clip{index}" for index in range(4)]
    told = "a picture of a cow with the sound of a dog and the words un mirlo"
    seen = "a picture of a cow with the sound of a cat and the words una vaca"
    return Captions(
        {clip: (told, f"{told} in {clip}") for clip in clips},
        {"video": dict.fromkeys(clips, seen), "both": dict.fromkeys(clips, told)},
        "",
        frozenset(clips),
    )


def test_without_labels_there_is_nothing_to_name() -> None:
    assert read_labels(with_labels(None)) is None


@pytest.mark.parametrize("text", [None, "{", "[]", '{"sound": []}'])
def test_labels_that_are_none_are_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=r"labels\.json, named by evaluation\.labels, is not a labels file"):
        read_labels(with_labels(tmp_path / "labels.json"))


def test_captions_are_kept_beside_their_references(captions: Captions, tmp_path: Path) -> None:
    write_captions(captions, tmp_path / "captions.json")
    kept = json.loads((tmp_path / "captions.json").read_text())["clip2"]
    assert kept["references"] == list(captions.references["clip2"])
    assert kept["both"] == captions.generated["both"]["clip2"] != kept["video"]
