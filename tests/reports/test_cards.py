"""A card holds the preview of its clip, and a note of what is missing or cut."""

from dataclasses import replace

from clip4vla.clips.preview import make_preview
from clip4vla.records import MODALITIES
from clip4vla.reports.cards import clip_card, cosine_facts
from clip4vla.reports.pages import Sound
from clip4vla.reports.tables import MODALITY_LABELS
from tests.clips.conftest import make_clip

RATE = 16_000


def test_it_has_the_preview_of_the_clip() -> None:
    card, preview = clip_card(make_clip(RATE), RATE, "title"), make_preview(make_clip(RATE), RATE)
    assert (card.title, card.pictures, card.sound, card.note) == ("title", preview.pictures, Sound(preview.sound), "")


def test_a_sound_that_is_cut_has_a_note() -> None:
    assert clip_card(make_clip(RATE, seconds=30.0), RATE, "title").note == "The first 12 of 30 seconds of sound."
    assert clip_card(replace(make_clip(RATE, seconds=30.0), frames=()), RATE, "title").note == (
        "No pictures. The first 12 of 30 seconds of sound."
    )


def test_it_notes_what_the_clip_lacks() -> None:
    silent = clip_card(replace(make_clip(RATE), audio=None), RATE, "title")
    assert (silent.sound, silent.note) == (None, "No sound.")
    unseen = clip_card(replace(make_clip(RATE), frames=()), RATE, "title")
    assert (unseen.pictures, unseen.note) == ((), "No pictures.")
    assert clip_card(replace(make_clip(RATE), frames=(), audio=None), RATE, "title").note == "No pictures, no sound."


def test_cosines_have_three_decimals_and_a_modality_that_the_clip_lacks_is_left_out() -> None:
    assert list(cosine_facts(dict.fromkeys(MODALITIES, 0.5)).values()) == ["0.500"] * 3
    found = cosine_facts({"both": -1.0, "audio": 0.12345})
    assert list(found.items()) == [("audio", "0.123"), (MODALITY_LABELS["both"], "-1.000")]
