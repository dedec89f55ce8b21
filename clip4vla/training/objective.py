"""What is minimised: named, weighted contrastive terms over the features of a batch, or the loss of its captions.

A criterion says what the model computes of a batch, clip by clip, and what losses follow from that. Out: a dict of
weighted losses, summed in one visible place, `Objective.total`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from clip4vla.batch import Batch
from clip4vla.losses.contrastive import info_nce, nt_xent
from clip4vla.losses.gather import world
from clip4vla.model.clip4vla import Clip4Vla, Features, View
from clip4vla.params import AudioToken, CaptionParams, FinetuneParams, PretrainParams
from clip4vla.records import Modality

Outputs = TypeVar("Outputs")

Loss = Callable[[Features, Tensor], Tensor]


def _pair(first: View, second: View) -> Loss:
    """InfoNCE between two views, over the clips that have both; where one is of texts, the mean over sentences."""

    def loss(features: Features, scale: Tensor) -> Tensor:
        valid = _has(features, first) & _has(features, second)
        pairs = list(zip(_vectors(features, first), cycle(_vectors(features, second)), strict=False))
        return torch.stack([info_nce(a, b, scale, valid=valid) for a, b in pairs]).mean()

    return loss


def _vectors(features: Features, view: View) -> tuple[Tensor, ...]:
    """The vectors (B, D) of a view: of texts one per sentence."""
    vectors = getattr(features, view)
    return vectors.unbind(1) if view == "text" else (vectors,)


def _has(features: Features, view: View) -> Tensor:
    """(B,) which clips have the view: a clip without a sound has no audio features to compare."""
    everyone = features.has_video | features.has_audio
    return {"video": features.has_video, "audio": features.has_audio}.get(view, everyone)


def _audio_audio(features: Features, scale: Tensor) -> Tensor:
    assert features.audio is not None
    assert features.audio_view is not None
    return nt_xent(features.audio, features.audio_view, scale, valid=features.has_audio)


def _text_cross(features: Features, scale: Tensor) -> Tensor:  # noqa: ARG001
    """The mean over clips; every rank has as many."""
    assert features.cross is not None
    _, ranks = world()
    return features.cross.mean() / ranks


TERMS: Mapping[str, tuple[tuple[View, View], Loss]] = {
    "text_audio": (("text", "audio"), _pair("text", "audio")),
    "video_audio": (("video", "audio"), _pair("video", "audio")),
    "text_video": (("text", "video"), _pair("text", "video")),
    "text_both": (("text", "both"), _pair("text", "both")),
    "audio_audio": (("audio", "audio_view"), _audio_audio),
    "text_cross": (("cross", "cross"), _text_cross),
    "text_text": (("text", "text"), _pair("text", "text")),
    "video_video": (("video", "video"), _pair("video", "video")),
}
"""Every term by its name in params.yaml: the views that it compares, and how.

All compare each clip with those of all ranks, but for text_cross, which reads pairs together and so compares only like
clips of one micro-batch; of its FLOPs only those of a text with its own clip are counted. The last two compare
features with themselves and so only push different clips apart. The published pretraining totals are `nce` =
text_audio + video_audio and `tav_nce` = text_audio + 2 video_audio; with self-supervision the first adds audio_audio,
the second audio_audio + text_text + video_video.
"""


class Criterion(Protocol[Outputs]):
    """What a training asks of a model and makes of the answer."""

    needs_all_clips: ClassVar[bool]
    """Whether a clip's loss depends on the other clips, those of all micro-batches and ranks. Otherwise losses are
    means over clips."""
    kind: ClassVar[type]
    """Class of what `outputs` returns."""

    def outputs(self, model: Clip4Vla, batch: Batch) -> Outputs:
        """What the losses need: a dataclass of tensors whose rows are the batch's clips, None for what they don't."""
        ...

    def losses(self, outputs: Outputs, scale: Tensor) -> dict[str, Tensor]:
        """Named and weighted: this rank's share of the losses over all ranks' clips, given the logit scale."""
        ...


def criterion_of(training: PretrainParams | FinetuneParams | CaptionParams, audio_token: AudioToken) -> "Criterion":
    """The criterion that a section of params.yaml describes."""
    if isinstance(training, CaptionParams):
        smoothing, dropout = training.label_smoothing, training.modality_dropout
        return Captioning(training.modalities, audio_token, smoothing, dropout)
    return Objective.of(training, audio_token)


@dataclass(frozen=True)
class Objective:
    """The terms of a training and the token that tells the audio tower what to listen for."""

    weights: Mapping[str, float]
    audio_token: AudioToken

    needs_all_clips: ClassVar[bool] = True
    kind: ClassVar[type[Features]] = Features

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("every term of the objective has weight 0: there is nothing to train")

    @classmethod
    def of(cls, training: PretrainParams | FinetuneParams, audio_token: AudioToken) -> "Objective":
        """The terms whose weight in `training` isn't 0."""
        weights = {name: getattr(training, name, 0.0) for name in TERMS}
        return cls({name: weight for name, weight in weights.items() if weight}, audio_token)

    @property
    def views(self) -> tuple[View, ...]:
        """What the model must compute for these terms."""
        return tuple(dict.fromkeys(view for name in self.weights for view in TERMS[name][0]))

    def outputs(self, model: Clip4Vla, batch: Batch) -> Features:
        """The views of these terms."""
        # no module of its own: see `engine`
        return model.forward(batch, audio_token=self.audio_token, views=self.views)

    def losses(self, features: Features, scale: Tensor) -> dict[str, Tensor]:
        """Each term times its weight: this rank's share of the loss over all ranks' clips."""
        return {name: weight * TERMS[name][1](features, scale) for name, weight in self.weights.items()}

    @staticmethod
    def total(losses: Mapping[str, Tensor]) -> Tensor:
        """What is minimised: the sum of the terms."""
        return sum(losses.values(), start=next(iter(losses.values())) * 0)


@dataclass(frozen=True)
class CaptionLosses:
    """What captioning makes of a batch."""

    caption: Tensor
    """(B,) float32, the loss of each clip's captions."""


@dataclass(frozen=True)
class Captioning:
    """Teacher forcing: every word of a clip's captions, given those before it and what is seen and heard."""

    modalities: Modality
    audio_token: AudioToken
    label_smoothing: float
    modality_dropout: float

    needs_all_clips: ClassVar[bool] = False
    kind: ClassVar[type[CaptionLosses]] = CaptionLosses

    def outputs(self, model: Clip4Vla, batch: Batch) -> CaptionLosses:
        """The loss of each clip; which modality is hidden in it is drawn anew."""
        percepts = model.perceive(batch, audio_token=self.audio_token, modalities=self.modalities)
        if self.modalities == "both":
            percepts = percepts.drop(self.modality_dropout)
        return CaptionLosses(model.caption_loss(batch.tokens, percepts, self.label_smoothing))

    def losses(self, outputs: CaptionLosses, scale: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """The mean over clips; every rank has as many."""
        _, ranks = world()
        return {"caption": outputs.caption.mean() / ranks}
