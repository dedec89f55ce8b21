"""Sentences and media files in, their vectors or captions out, as a trained model sees them outside of the pipeline.

What serving and search share: a file is decoded, stored and read back as the clips of training were, so that the model
meets here what it was trained on.
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clip4vla.audio.frontend import max_samples
from clip4vla.batch import Batch
from clip4vla.clips.format import Clip, decode_row, encode_row
from clip4vla.clips.loader import View as ClipView
from clip4vla.clips.loader import collate
from clip4vla.media.decode import decode
from clip4vla.model.checkpoints import load_model
from clip4vla.model.clip4vla import Features, View
from clip4vla.model.text import Tokenizer
from clip4vla.params import CaptionParams, ClipsParams, SearchParams, Section, TrainingParams
from clip4vla.records import Modality, SourceRecord, Text


class Writing(Section):
    """How a model writes captions."""

    modalities: Modality
    """What it attends to."""
    search: SearchParams
    """How it looks for the best one."""


class Outlook(Section):
    """How a model was shown clips and texts in training; stored with each version in the registry."""

    clips: ClipsParams
    frames: int
    words: int
    writing: Writing | None = None
    """None where it embeds."""

    @classmethod
    def of(cls, clips: ClipsParams, training: TrainingParams, search: SearchParams | None = None) -> "Outlook":
        """Of a model that was trained as `training` says; `search` is for one that writes captions.

        Raises:
            ValueError: the model writes captions, and there is no `search`.
        """
        writing = None
        if isinstance(training, CaptionParams):
            if search is None:
                raise ValueError("a model that writes captions is registered with how to search for them")
            writing = Writing(modalities=training.modalities, search=search)
        return cls(clips=clips, frames=training.frames, words=training.words, writing=writing)


class Embedder:
    """Embeds with the model of a run result, on a GPU where there is one.

    Args:
        run_directory: holds the model.
        outlook: how it was shown clips and texts.

    Raises:
        ValueError: the directory holds no model.
    """

    def __init__(self, run_directory: Path, outlook: Outlook) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = load_model(run_directory).to(self.device)
        self._clips = outlook.clips
        self.writing = outlook.writing
        self._tokenizer = Tokenizer(self.model.architecture.name, min(outlook.words, self.model.context_length))
        self._view = ClipView(
            frames=outlook.frames,
            image_size=self.model.image_size,
            max_samples=max_samples(self.model.audio_params, self.model.image_size),
            tokenize=self._tokenizer,
        )

    @property
    def sample_rate(self) -> int:
        """Of the sound of a clip that `read` gives."""
        return self.model.audio_params.sample_rate

    def read(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> Clip:
        """A span of a file as it would be stored: the same frames, size and JPEG as in training.

        Raises:
            MediaError: the file can't be used.
        """
        settings = self._clips
        span = decode(
            path,
            start_s,
            end_s,
            frames=settings.frames,
            short_side=settings.size,
            sample_rate=self.sample_rate,
        )
        record = SourceRecord(str(path), str(path), "test", ())
        return decode_row(encode_row(record, span, settings.jpeg_quality))

    @torch.inference_mode()
    def embed_texts(self, sentences: Sequence[str]) -> Tensor:
        """Unit vectors (N, D), float32 on the CPU."""
        features = self.model.encode_text(self._view.tokenize(sentences).to(self.device))
        return F.normalize(features.float(), dim=1).cpu()

    @torch.inference_mode()
    def embed_clips(self, clips: Sequence[Clip], views: Collection[View]) -> Features:
        """The wanted views of `clips`, which pass through the towers at once."""
        token = self.model.params.audio_token
        features: Features = self.model(self._collate(clips), audio_token=token, views=views)
        return features

    @torch.inference_mode()
    def caption_clips(self, clips: Sequence[Clip]) -> list[str]:
        """A sentence about each of `clips`, by a model that writes captions."""
        assert self.writing is not None
        token, search = self.model.params.audio_token, self.writing.search
        percepts = self.model.perceive(self._collate(clips), audio_token=token, modalities=self.writing.modalities)
        written = self.model.write(percepts, length=self._tokenizer.words - 1, **search.model_dump())
        return [self._tokenizer.decode(row) for row in written.cpu()]

    def _collate(self, clips: Sequence[Clip]) -> Batch:
        return collate(clips, [[Text("")]] * len(clips), self._view, None).to(self.device)
