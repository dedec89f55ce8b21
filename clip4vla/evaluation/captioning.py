"""The benchmark of a captioning model: what it writes of each test clip by what it sees, hears, and both.

In: a model and the clips of a test split. Out: captions and `Scores`: the field's metrics and, where the corpus knows
what each clip shows and lets one hear, how often a caption names it. Nothing is trained or chosen here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from clip4vla.audio.frontend import max_samples
from clip4vla.batch import Batch
from clip4vla.clips.loader import ClipStore, collate
from clip4vla.clips.loader import View as ClipView
from clip4vla.evaluation.caption_metrics import CaptionMetrics
from clip4vla.evaluation.scores import Samples, Scores, fingerprint, summarise_samples
from clip4vla.evaluation.suite import batches, digest
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.text import Tokenizer
from clip4vla.params import AudioToken, CaptionParams, EvaluateParams, SearchParams
from clip4vla.progress import track
from clip4vla.records import MODALITIES, Modality, Text

NameSlots = Callable[[str, Mapping[str, str]], Mapping[str, bool]]
"""A corpus' own reading of a caption: for each role of what is right, whether the caption names it."""


@dataclass(frozen=True)
class Slots:
    """What captions should name, where a corpus knows."""

    right: Mapping[str, Mapping[str, str]]
    """The right text of each role, by clip; clips of other corpora have none."""
    read: NameSlots


@dataclass(frozen=True)
class Captions:
    """What a model wrote of a test split."""

    references: Mapping[str, tuple[str, ...]]
    """The sentences of each clip."""
    written: Mapping[Modality, Mapping[str, str]]
    """One caption of each clip, by what was attended to."""
    content: str
    """Digest of the clips' pictures and sound."""


class Captioner:
    """Writes captions with one model.

    Args:
        model: in evaluation mode, with a decoder; moved to the GPU where there is one.
        training: whose modalities, frames and words the model was trained with.
        search: how it looks for the best caption.
    """

    def __init__(self, model: Clip4Vla, training: CaptionParams, search: SearchParams) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.modalities = training.modalities
        self.search = search
        self.tokenizer = Tokenizer(model.architecture.name, min(training.words, model.context_length))
        samples = max_samples(model.audio_params, model.image_size)
        self.view = ClipView(training.frames, model.image_size, samples, self.tokenizer)

    def caption(self, store: ClipStore, audio_token: AudioToken, batch_size: int) -> Captions:
        """Caption every clip by vision, by audio and by both, or by the one that the model was trained with."""
        modalities = MODALITIES if self.modalities == "both" else (self.modalities,)
        references: dict[str, tuple[str, ...]] = {}
        written: dict[Modality, dict[str, str]] = {modality: {} for modality in modalities}
        content = []
        rounds = -(-len(store) // batch_size)
        for clips in track(batches(store, batch_size), rounds, "captions"):
            ids = [clip.clip_id for clip in clips]
            references |= {clip.clip_id: tuple(text.text for text in clip.texts) for clip in clips}
            content += [digest(clip) for clip in clips]
            batch = collate(clips, [[Text("")]] * len(clips), self.view, None)
            for modality, sentences in self.write(batch, audio_token, modalities).items():
                written[modality] |= dict(zip(ids, sentences, strict=True))
        return Captions(references, written, "".join(content))

    @torch.inference_mode()
    def write(self, batch: Batch, audio_token: AudioToken, modalities: Sequence[Modality]) -> dict[Modality, list[str]]:
        """A caption of each clip of a batch, by modality; the towers look and listen once."""
        percepts = self.model.perceive(batch.to(self.device), audio_token=audio_token, modalities=self.modalities)
        written: dict[Modality, list[str]] = {}
        for modality in modalities:
            tokens = self.model.write(
                percepts.only(modality),
                beam=self.search.beam,
                length=self.tokenizer.words - 1,
                length_penalty=self.search.length_penalty,
            )
            written[modality] = [self.tokenizer.decode(row) for row in tokens.cpu()]
        return written


def score_captions(captions: Captions, slots: Slots | None, evaluate: EvaluateParams, java: bool = True) -> Scores:
    """`caption/MODALITY/METRIC` in the units of the standard code, and `caption/MODALITY/slot/ROLE` in per cent.

    What is a mean over clips has a 95 % interval. The tokenization is part of what makes scores comparable.

    Args:
        captions: of a test split.
        slots: what captions should name; None leaves the slots out.
        evaluate: for the bootstrap.
        java: whether to compute what needs Java, where it is installed.
    """
    metrics = CaptionMetrics(captions.references, java)
    values: dict[str, float] = {}
    samples: dict[str, Samples] = {}
    for modality, written in captions.written.items():
        found = metrics.score(written)
        values |= {f"caption/{modality}/{name}": value for name, value in found.values.items()}
        clips = tuple(captions.references)
        samples |= {f"caption/{modality}/{name}": Samples(clips, each) for name, each in found.each.items()}
        samples |= {f"caption/{modality}/slot/{role}": hits for role, hits in _hits(written, slots).items()}
    pairs = [(clip, text) for clip, texts in captions.references.items() for text in texts]
    test_set = fingerprint(pairs, captions.content + metrics.tokenizer)
    notes = {"tokenizer": metrics.tokenizer, **metrics.notes}
    return summarise_samples(test_set, samples, evaluate.bootstrap, evaluate.seed, values, notes)


def _hits(written: Mapping[str, str], slots: Slots | None) -> dict[str, Samples]:
    """100 for each clip whose caption names the right text of a role, 0 for the others; by role."""
    if slots is None:
        return {}
    named = {clip: slots.read(caption, slots.right[clip]) for clip, caption in written.items() if clip in slots.right}
    roles = sorted({role for roles in named.values() for role in roles})
    hits: dict[str, Samples] = {}
    for role in roles:
        clips = tuple(clip for clip, found in named.items() if role in found)
        hits[role] = Samples(clips, np.array([100.0 * named[clip][role] for clip in clips]))
    return hits
