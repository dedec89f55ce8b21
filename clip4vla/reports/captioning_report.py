"""The report of a captioning benchmark: generated captions, their scores and the clips in, a `Page` out.

Shown are the best, median and worst clips by CIDEr, each with pictures, sound, the caption and its references.
"""

from dataclasses import dataclass, replace
from functools import cached_property

from clip4vla.clips.dataset import ClipDataset
from clip4vla.evaluation.caption_evaluator import Captions, Slots
from clip4vla.evaluation.scores import WITH_SOUND, Scores
from clip4vla.records import MODALITIES, Modality
from clip4vla.reports.cards import clip_card
from clip4vla.reports.examples import pick_examples
from clip4vla.reports.pages import Card, Lines, Mark, Page, Section
from clip4vla.reports.tables import MODALITY_LABELS, Table, score_table
from clip4vla.utils.numbers import format_count, format_score

CLIPS = 8
"""Clips of each kind of example."""
ORDERED_BY = "CIDEr"
PER_CLIP = (ORDERED_BY, "ROUGE-L")
"""Metrics that each clip has a value of."""
METRICS = (ORDERED_BY, "SPICE", "METEOR", "ROUGE-L", *(f"BLEU-{n}" for n in (4, 3, 2, 1)))
"""Columns of the table, those that summarise best first."""


def captioning_page(
    title: str, captions: Captions, scores: Scores, dataset: ClipDataset, slots: Slots | None, sample_rate: int
) -> Page:
    """The report of `captions`, with examples by all modalities that the model attends to.

    Args:
        scores: of `captions`.
        dataset: holds the captioned clips; of clips that share an id the first one is shown.
        slots: what captions should name; None where the corpus doesn't say.
        sample_rate: of the stored sounds.

    Raises:
        ValueError: `dataset` lacks a clip that is shown.
    """
    examples = _Examples(captions, scores, dataset, slots, sample_rate)
    label = MODALITY_LABELS[examples.modality]
    note = f"Scores with 95 % intervals, then the best, median and worst captions from {label}, by {ORDERED_BY}."
    size = captions.size
    facts = {"clips": format_count(size.clips), "clips with sound": format_count(size.with_sound)}
    facts["test set"] = scores.test_set
    return Page(title, note, facts, captioning_tables(scores), examples.sections())


def captioning_tables(scores: Scores) -> list[Table]:
    """Caption metrics and, where there are any, slot accuracies, by the modality that the captions come from."""
    parts = [name.split("/", 2) for name in scores.values if name.startswith("caption/")]
    measured = {part[2] for part in parts}
    rows = {MODALITY_LABELS[m]: f"caption/{m}" for m in MODALITIES if any(part[1] == m for part in parts)}
    columns = {name: name for name in METRICS if name in measured}
    notes = [f"{name}: {note}" for name, note in scores.notes.items()]
    tables = [score_table("Caption metrics by input modality", scores, rows, columns, notes)]
    of_sound = {label: f"{WITH_SOUND}/{start}" for label, start in rows.items()}
    if any(name.startswith(f"{WITH_SOUND}/") for name in scores.values):
        tables.append(score_table("The same of the clips with sound alone", scores, of_sound, columns))
    roles = sorted(name for name in measured if name.startswith("slot/"))
    if roles:
        slots = {role.removeprefix("slot/"): role for role in roles}
        title = "Captions that name the right thing: per cent"
        tables.append(score_table(title, scores, rows, slots))
    return tables


@dataclass(frozen=True)
class _Examples:
    """Sections and cards of captioned clips."""

    captions: Captions
    scores: Scores
    dataset: ClipDataset
    slots: Slots | None
    sample_rate: int

    @property
    def modality(self) -> Modality:
        """Whose captions are shown: the last, which is `both` where the model attends to both."""
        return list(self.captions.generated)[-1]

    @cached_property
    def values(self) -> dict[str, dict[str, float]]:
        """By metric and clip."""
        samples = {name: self.scores.samples[f"caption/{self.modality}/{name}"] for name in PER_CLIP}
        return {name: dict(zip(each.clip_ids, each.values.tolist(), strict=True)) for name, each in samples.items()}

    def sections(self) -> list[Section]:
        """The best, the median and the worst captions."""
        order = sorted(self.captions.references, key=lambda clip_id: (-self.values[ORDERED_BY][clip_id], clip_id))
        examples = pick_examples(order, order, CLIPS)
        return [Section(f"{name} captions", cards=list(map(self._card, clips))) for name, clips in examples.items()]

    def _card(self, clip_id: str) -> Card:
        if clip_id not in self.dataset.clip_ids:
            raise ValueError(f"there is no clip {clip_id} to show in {', '.join(map(str, self.dataset.paths))}")
        [clip] = self.dataset.take([self.dataset.clip_ids.index(clip_id)])
        generated, references = self.captions.generated[self.modality][clip_id], self.captions.references[clip_id]
        return replace(
            clip_card(clip, self.sample_rate, clip_id),
            marks=self._marks(generated, clip_id),
            facts={name: format_score(name, by_clip[clip_id]) for name, by_clip in self.values.items()},
            texts=[Lines("generated", [generated]), Lines("references", references)],
        )

    def _marks(self, caption: str, clip_id: str) -> list[Mark]:
        if self.slots is None or clip_id not in self.slots.labels.clips:
            return []
        right = self.slots.labels.clips[clip_id]
        return [Mark(found, role) for role, found in self.slots.read(caption, right).items()]
