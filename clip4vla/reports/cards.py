"""Cards of clips: a stored `Clip` in, the `Card` that a page shows of it out."""

from collections.abc import Mapping

from clip4vla.clips.format import Clip
from clip4vla.clips.preview import LONGEST_S, make_preview
from clip4vla.records import MODALITIES, Modality
from clip4vla.reports.pages import Card, Sound
from clip4vla.reports.tables import MODALITY_LABELS
from clip4vla.utils.numbers import format_score

SCORE_NOTE = "the cosine similarity, or the sum of those of a model's experts, weighted by the sentence"
"""What the score of a sentence and a clip is."""


def clip_card(clip: Clip, sample_rate: int, title: str) -> Card:
    """A card with pictures and sound of `clip`, and a note where it has none of them or where the sound is cut.

    The caller adds facts and texts: `replace(clip_card(...), facts=..., texts=...)`.
    """
    preview = make_preview(clip, sample_rate)
    sound = None if preview.sound is None else Sound(preview.sound)
    return Card(title, preview.pictures, sound, note=_note(clip, sample_rate))


def cosine_facts(cosines: Mapping[Modality, float]) -> dict[str, str]:
    """Scores of a sentence and a clip, as a card shows them; a modality that the clip lacks is left out."""
    return {MODALITY_LABELS[m]: format_score("cosine", cosines[m]) for m in MODALITIES if m in cosines}


def _note(clip: Clip, sample_rate: int) -> str:
    if clip.audio is None:
        return "No sound." if clip.frames else "No pictures, no sound."
    seconds = clip.audio.shape[1] / sample_rate
    cut = f"The first {LONGEST_S:g} of {seconds:.0f} seconds of sound." if seconds > LONGEST_S else ""
    return " ".join(filter(None, ("" if clip.frames else "No pictures.", cut)))
