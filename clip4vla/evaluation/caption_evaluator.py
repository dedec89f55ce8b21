"""Scores of a captioning model: what it generates for each test clip from video, from audio, and from both.

In: an embedder and the clips of a test split. Out: captions and `Scores`: the field's metrics and, where the corpus has
labels, how often a caption names what is right. Nothing is trained or chosen here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.format import Clip
from clip4vla.config import EvaluationConfig
from clip4vla.evaluation.caption_metrics import CaptionMetrics
from clip4vla.evaluation.labels import Labels
from clip4vla.evaluation.retrieval_evaluator import batches, digest
from clip4vla.evaluation.scores import WITH_SOUND, Samples, Scores, SplitSize, fingerprint, summarise_samples
from clip4vla.inference.embedder import Embedder
from clip4vla.records import MODALITIES, Modality
from clip4vla.utils.progress import track

SlotReader = Callable[[str, Mapping[str, str]], Mapping[str, bool]]
"""A corpus' reading of a caption: for each role of the right texts, whether the caption names it."""


@dataclass(frozen=True)
class Slots:
    """What captions should name, where a corpus has labels."""

    labels: Labels
    read: SlotReader


@dataclass(frozen=True)
class Captions:
    """The captions that a model generated for a test split."""

    references: Mapping[str, tuple[str, ...]]
    """The sentences of each clip."""
    generated: Mapping[Modality, Mapping[str, str]]
    """One caption of each clip, by the modality that was attended to."""
    content: str
    """Digest of the frames and sounds of the clips."""
    with_sound: frozenset[str]
    """The clips that have sound."""

    @property
    def size(self) -> SplitSize:
        """Clips, and those with sound."""
        return SplitSize(len(self.references), len(self.with_sound))


class CaptionEvaluator:
    """Generates captions with one model.

    Args:
        embedder: a model with a caption decoder, and its beam search.
        config: the batch size.

    Raises:
        ValueError: the model has no caption decoder.
    """

    def __init__(self, embedder: Embedder, config: EvaluationConfig) -> None:
        generation = embedder.inference.generation
        if generation is None:
            raise ValueError("this model has no caption decoder: fine-tune it for captioning first")
        self.embedder = embedder
        self.config = config
        self.trained_on = generation.modalities

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """What captions are generated from: each modality and both, or the one that the model was trained on."""
        return MODALITIES if self.trained_on == "both" else (self.trained_on,)

    def caption(self, dataset: ClipDataset) -> Captions:
        """Caption every clip, from each of `modalities`."""
        references: dict[str, tuple[str, ...]] = {}
        generated: dict[Modality, dict[str, str]] = {modality: {} for modality in self.modalities}
        content, with_sound = [], set[str]()
        rounds = -(-len(dataset) // self.config.batch_size)
        for clips in track(batches(dataset, self.config.batch_size), rounds, "batches of captions"):
            ids = [clip.clip_id for clip in clips]
            references |= {clip.clip_id: tuple(text.text for text in clip.texts) for clip in clips}
            content += [digest(clip) for clip in clips]
            with_sound |= {clip.clip_id for clip in clips if clip.has_sound}
            for modality, sentences in self.generate(clips).items():
                generated[modality] |= dict(zip(ids, sentences, strict=True))
        return Captions(references, generated, "".join(content), frozenset(with_sound))

    def generate(self, clips: Sequence[Clip]) -> dict[Modality, list[str]]:
        """A caption of each clip by modality; the towers run once."""
        media = self.embedder.media_features(clips, self.trained_on)
        return {modality: self.embedder.generate(media.only(modality)) for modality in self.modalities}


def score_captions(captions: Captions, slots: Slots | None, config: EvaluationConfig, java: bool = True) -> Scores:
    """`caption/MODALITY/METRIC` in the units of the standard code, and `caption/MODALITY/slot/ROLE` in per cent.

    Where some clips have sound and others don't, the metrics are also of those with sound alone, see `WITH_SOUND`. What
    is a mean over clips has a 95 % interval. The tokenization is part of what makes scores comparable.

    Args:
        captions: of a test split.
        slots: what captions should name; None leaves the slots out.
        config: for the bootstrap.
        java: whether to compute what needs Java, where it is installed.
    """
    metrics = CaptionMetrics(captions.references, java)
    values, samples = _measure(metrics, captions.references, captions.generated)
    if 0 < captions.size.with_sound < captions.size.clips:
        references = {clip: texts for clip, texts in captions.references.items() if clip in captions.with_sound}
        found = _measure(CaptionMetrics(references, java), references, captions.generated)
        values |= {f"{WITH_SOUND}/{name}": value for name, value in found[0].items()}
        samples |= {f"{WITH_SOUND}/{name}": each for name, each in found[1].items()}
    for modality, generated in captions.generated.items():
        samples |= {f"caption/{modality}/slot/{role}": hits for role, hits in _hits(generated, slots).items()}
    pairs = [(clip, text) for clip, texts in captions.references.items() for text in texts]
    test_set = fingerprint(pairs, captions.content + metrics.tokenizer)
    notes = {"tokenizer": metrics.tokenizer, **metrics.notes}
    return summarise_samples(test_set, samples, config.bootstrap, config.seed, values, notes, captions.size)


def _measure(
    metrics: CaptionMetrics,
    references: Mapping[str, tuple[str, ...]],
    generated: Mapping[Modality, Mapping[str, str]],
) -> tuple[dict[str, float], dict[str, Samples]]:
    """Scores of the corpus and of each clip, of the captions of the clips in `references`."""
    values: dict[str, float] = {}
    samples: dict[str, Samples] = {}
    for modality, captions in generated.items():
        found = metrics.score({clip: captions[clip] for clip in references})
        values |= {f"caption/{modality}/{name}": value for name, value in found.values.items()}
        samples |= {f"caption/{modality}/{n}": Samples(tuple(references), each) for n, each in found.each.items()}
    return values, samples


def _hits(generated: Mapping[str, str], slots: Slots | None) -> dict[str, Samples]:
    """100 for each clip whose caption names the right text of a role, 0 for the others; by role."""
    if slots is None:
        return {}
    right = slots.labels.clips
    named = {clip: slots.read(caption, right[clip]) for clip, caption in generated.items() if clip in right}
    roles = sorted({role for roles in named.values() for role in roles})
    hits: dict[str, Samples] = {}
    for role in roles:
        clips = tuple(clip for clip, found in named.items() if role in found)
        hits[role] = Samples(clips, np.array([100.0 * named[clip][role] for clip in clips]))
    return hits
