"""A report shows the best, median and worst captions: each with its clip, its references and its scores."""

from collections.abc import Sequence

import numpy as np
import pytest

from benchmarks.clips import write_clips
from clip4vla.clips.dataset import ClipDataset
from clip4vla.evaluation.caption_evaluator import Captions, Slots
from clip4vla.evaluation.labels import Labels
from clip4vla.evaluation.scores import Samples, Scores, summarise_samples
from clip4vla.records import MODALITIES
from clip4vla.reports.captioning_report import captioning_page, captioning_tables
from clip4vla.reports.pages import Mark, Page, render_page
from clip4vla.reports.tables import MODALITY_LABELS
from tests.markup import parse

RATE = 16000
LABELS = Labels({"sound": ("a dog",)}, {"clip1": {"sound": "a dog"}})
SLOTS = Slots(LABELS, lambda caption, right: {role: text in caption for role, text in right.items()})


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ClipDataset:
    return ClipDataset([write_clips(tmp_path_factory.mktemp("clips") / "test.lance", 6)])


def captions_of(clips: Sequence[str]) -> Captions:
    references = {clip: (f"reference of {clip}", "another") for clip in clips}
    generated = {m: {clip: f"a dog by {m} of {clip}" for clip in clips} for m in MODALITIES}
    return Captions(references, generated, "", frozenset(clips))


def scores_of(cider: dict[str, float]) -> Scores:
    clips = tuple(cider)
    samples = {
        "ROUGE-L": Samples(clips, np.full(len(clips), 0.25)),
        "CIDEr": Samples(clips, np.array([*cider.values()])),
    }
    samples |= {"slot/sound": Samples(clips, np.linspace(0.0, 100.0, len(clips)))}
    named = {f"caption/{m}/{name}": found for m in MODALITIES for name, found in samples.items()}
    others = {f"caption/{m}/BLEU-{n}": n / 10 for m in MODALITIES for n in (1, 2, 3, 4)}
    return summarise_samples("0123", named, 100, 0, others, {"METEOR": "left out: no Java"})


def page_of(dataset: ClipDataset, cider: dict[str, float], slots: Slots | None = SLOTS) -> Page:
    return captioning_page("captions", captions_of([*cider]), scores_of(cider), dataset, slots, RATE)


CIDER = {"clip0": 0.5, "clip1": 0.9, "clip2": 0.1, "clip3": 0.7, "clip4": 0.3}


def test_captions_stand_beside_their_references_from_best_to_worst(dataset: ClipDataset) -> None:
    page = page_of(dataset, CIDER)
    assert [part.title for part in page.sections] == ["Best captions", "Median captions", "Worst captions"]
    assert [[card.title for card in part.cards] for part in page.sections] == [["clip1"], ["clip0"], ["clip2"]]
    card = page.sections[0].cards[0]
    assert [(lines.label, list(lines.lines)) for lines in card.texts] == [
        ("generated", ["a dog by both of clip1"]),
        ("references", ["reference of clip1", "another"]),
    ]
    assert card.facts == {"CIDEr": "0.900", "ROUGE-L": "0.250"}
    assert len(card.pictures) == 1
    assert card.sound is not None


def test_a_card_marks_what_its_caption_names(dataset: ClipDataset) -> None:
    best, median, _ = (part.cards[0] for part in page_of(dataset, CIDER).sections)
    assert (best.marks, median.marks) == ([Mark(True, "sound")], [])
    assert page_of(dataset, CIDER, None).sections[0].cards[0].marks == []


def test_the_head_has_metrics_and_slots_by_modality() -> None:
    metrics, slots = captioning_tables(scores_of(CIDER))
    assert metrics.head == ["", "CIDEr", "ROUGE-L", "BLEU-4", "BLEU-3", "BLEU-2", "BLEU-1"]
    assert [row[0] for row in metrics.rows] == list(MODALITY_LABELS.values())
    assert metrics.rows[0][1].startswith("0.500 [0.")
    assert metrics.rows[0][3] == "0.400"
    assert metrics.notes == ["METEOR: left out: no Java"]
    assert slots.head == ["", "sound"]
    assert slots.rows[0][1].startswith("50.0 [")


def test_without_slots_there_is_one_table() -> None:
    assert len(captioning_tables(Scores("0123", {"caption/both/CIDEr": 1.0}))) == 1


def test_the_page_shows_the_captions_of_all_modalities_together(dataset: ClipDataset) -> None:
    document = render_page(page_of(dataset, CIDER))
    assert len(parse(document).all("article")) == 3
    assert "a dog by both of clip1" in document
    assert "a dog by audio of clip1" not in document
    assert "METEOR: left out: no Java" in document


def test_a_caption_of_an_unknown_clip_is_refused(dataset: ClipDataset) -> None:
    with pytest.raises(ValueError, match=r"there is no clip stranger to show in .*test\.lance"):
        page_of(dataset, {"stranger": 1.0})
