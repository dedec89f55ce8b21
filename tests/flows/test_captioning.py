"""How the flows read what captions should name, and show what was written."""

import json
from pathlib import Path

import pytest

from benchmarks.clips import write_clips
from clip4vla import pages
from clip4vla.clips.loader import ClipStore
from clip4vla.evaluation.captioning import Captions, Slots, score_captions
from clip4vla.params import Params, load_params
from flows.captioning import caption_page, caption_table, read_slots, write_captions
from tests.markup import parse
from tests.project import REPOSITORY

PARAMS = load_params(REPOSITORY / "params.yaml")
RIGHT = {"clip1": {"seen": "a cow", "sound": "the sound of a dog", "speech": "un mirlo"}}


def with_labels(path: Path | None) -> Params:
    changes = {"labels": None if path is None else str(path), "bootstrap": 100}
    return PARAMS.model_copy(update={"evaluate": PARAMS.evaluate.model_copy(update=changes)})


@pytest.fixture
def captions() -> Captions:
    clips = [f"clip{index}" for index in range(4)]
    told = "a picture of a cow with the sound of a dog and the words un mirlo"
    seen = "a picture of a cow with the sound of a cat and the words una vaca"
    return Captions(
        {clip: (told, f"{told} in {clip}") for clip in clips},
        {"vision": dict.fromkeys(clips, seen), "both": dict.fromkeys(clips, told)},
        "",
    )


@pytest.fixture
def slots(tmp_path: Path) -> Slots | None:
    (tmp_path / "labels.json").write_text(json.dumps({"clips": RIGHT}))
    return read_slots(with_labels(tmp_path / "labels.json"))


def test_labels_say_what_captions_should_name(slots: Slots | None, captions: Captions) -> None:
    scores = score_captions(captions, slots, with_labels(None).evaluate, java=False)
    found = {m: [scores.values[f"caption/{m}/slot/{role}"] for role in RIGHT["clip1"]] for m in ("vision", "both")}
    assert found == {"vision": [100, 0, 0], "both": [100, 100, 100]}


def test_without_labels_there_is_nothing_to_name() -> None:
    assert read_slots(with_labels(None)) is None


@pytest.mark.parametrize("text", [None, "{", "[]", '{"sound": []}'])
def test_labels_that_are_none_are_named(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "labels.json").write_text(text)
    with pytest.raises(ValueError, match=r"labels\.json holds no labels, which evaluate\.labels asks for"):
        read_slots(with_labels(tmp_path / "labels.json"))


def test_captions_are_kept_beside_their_references(captions: Captions, tmp_path: Path) -> None:
    write_captions(captions, tmp_path / "captions.json")
    kept = json.loads((tmp_path / "captions.json").read_text())["clip2"]
    assert kept["references"] == list(captions.references["clip2"])
    assert kept["both"] == captions.written["both"]["clip2"] != kept["vision"]


def test_the_table_says_what_is_left_out(captions: Captions) -> None:
    table = caption_table({"caption": score_captions(captions, None, with_labels(None).evaluate, java=False)})
    assert "| caption/both/BLEU-4 | 1 |" in table
    assert "- caption: METEOR: left out" in table


def test_the_page_shows_captions_by_all_that_was_attended_to_and_what_they_name(
    captions: Captions, slots: Slots | None, tmp_path: Path
) -> None:
    store = ClipStore([write_clips(tmp_path / "test.lance", 4)])
    scores = score_captions(captions, slots, with_labels(None).evaluate, java=False)
    pages.write(caption_page(captions, scores, store, slots, 16000), tmp_path / "report.html")
    root = parse((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(root.all("article")) == 3
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert captions.written["both"]["clip1"] in text
    assert captions.written["vision"]["clip1"] not in text
    assert "slot/speech" in text
    assert "METEOR: left out" in text
