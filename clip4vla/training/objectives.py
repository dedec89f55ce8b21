"""What a training minimises: named, weighted contrastive terms over the embeddings of a batch, or the caption loss.

An objective computes outputs of a batch clip by clip, and losses of these outputs. Out: a dict of weighted losses,
which `total_loss` sums.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from clip4vla.clips.batch import Batch
from clip4vla.config import AudioToken, CaptioningConfig, PretrainingConfig, RetrievalConfig
from clip4vla.losses.contrastive import info_nce, multi_positive_info_nce, nt_xent
from clip4vla.losses.gather import world
from clip4vla.losses.mixture import mixture_nll
from clip4vla.model.clip4vla import TEXT_NAMES, Clip4Vla, EmbeddingName
from clip4vla.model.experts import weighted
from clip4vla.records import Modality

Outputs = Mapping[str, Tensor]
"""Tensors by name whose rows are the clips of a batch: embeddings, masks, losses of single clips."""
Loss = Callable[[Outputs, Tensor], Tensor]
"""A term, given the outputs and the logit scale: this rank's share of the loss over the clips of all ranks."""


def _pair(first: EmbeddingName, second: EmbeddingName) -> Loss:
    """InfoNCE between two embeddings over the clips that have both; for texts, the mean over captions."""

    def loss(outputs: Outputs, scale: Tensor) -> Tensor:
        valid = _has(outputs, first) & _has(outputs, second)
        pairs = list(zip(_vectors(outputs, first), cycle(_vectors(outputs, second)), strict=False))
        return torch.stack([info_nce(a, b, scale, valid=valid) for a, b in pairs]).mean()

    return loss


def _texts(query: EmbeddingName, media: EmbeddingName, shared: bool = False) -> Loss:
    """InfoNCE between captions and clips; with caption ids, a caption is right for every clip that has it.

    Args:
        query: embedding of the captions.
        media: embedding of the clips.
        shared: where those are trained apart, whether the captions are those that several clips have, or those of one
            clip.
    """
    plain = _pair(query, media)

    def loss(outputs: Outputs, scale: Tensor) -> Tensor:
        if TEXT_IDS not in outputs and not shared:
            return plain(outputs, scale)
        of_sort = None
        if shared:
            of_sort = outputs[SHARED].flatten()
        elif SHARED in outputs:
            of_sort = ~outputs[SHARED].flatten()
        return multi_positive_info_nce(
            outputs[query].flatten(0, 1),
            outputs[media],
            scale,
            text_ids=outputs[TEXT_IDS].flatten(),
            clip_ids=outputs[CLIP_TEXT_IDS],
            valid_texts=of_sort,
            valid_clips=_has(outputs, media),
        )

    return loss


def _clips(first: EmbeddingName, second: EmbeddingName) -> Loss:
    """InfoNCE between two embeddings of clips; with caption ids, clips of the identical caption match."""
    plain = _pair(first, second)

    def loss(outputs: Outputs, scale: Tensor) -> Tensor:
        if TEXT_IDS not in outputs:
            return plain(outputs, scale)
        valid = _has(outputs, first) & _has(outputs, second)
        return multi_positive_info_nce(
            outputs[first],
            outputs[second],
            scale,
            text_ids=outputs[TEXT_IDS][:, 0],
            clip_ids=outputs[CLIP_TEXT_IDS],
            valid_texts=valid,
            valid_clips=valid,
        )

    return loss


def _text_experts(outputs: Outputs, scale: Tensor) -> Tensor:
    """Likelihood of the right clips of shared captions under the mixture of experts."""
    return mixture_nll(
        outputs["expert_queries"].flatten(0, 1),
        outputs["expert_weights"].flatten(0, 1),
        outputs["both"].unflatten(1, outputs["expert_queries"].shape[2:]),
        scale,
        text_ids=outputs[TEXT_IDS].flatten(),
        clip_ids=outputs[CLIP_TEXT_IDS],
        valid_texts=outputs[SHARED].flatten(),
        valid_clips=_has(outputs, "both"),
    )


def _text_audio_experts(outputs: Outputs, scale: Tensor) -> Tensor:
    """InfoNCE between own captions and the audio experts of clips, without the video expert."""
    queries, weights = outputs["expert_queries"].flatten(0, 1), outputs["expert_weights"].flatten(0, 1)
    return multi_positive_info_nce(
        weighted(queries[:, 1:], weights[:, 1:]),
        outputs["both"][:, queries.shape[2] :],
        scale,
        text_ids=outputs[TEXT_IDS].flatten(),
        clip_ids=outputs[CLIP_TEXT_IDS],
        valid_texts=~outputs[SHARED].flatten(),
        valid_clips=outputs["has_audio"],
    )


def _text_text_experts(outputs: Outputs, scale: Tensor) -> Tensor:
    """Own captions as keys of the shared ones, by expert: a sentence is found by each part that is true of its clip.

    The shared captions are constants here: they teach each expert which words of a longer sentence to read.
    """
    queries = outputs["expert_queries"].flatten(0, 1)
    captions = outputs["expert_queries"].shape[1]
    shared = outputs[SHARED].flatten()
    return mixture_nll(
        queries.detach(),
        outputs["expert_weights"].flatten(0, 1).detach(),
        queries,
        scale,
        text_ids=outputs[TEXT_IDS].flatten(),
        clip_ids=outputs[CLIP_TEXT_IDS].repeat_interleave(captions, 0),
        valid_texts=shared,
        valid_clips=~shared,
        expectation=True,
    )


def _vectors(outputs: Outputs, name: EmbeddingName) -> tuple[Tensor, ...]:
    """The vectors (B, D) of an embedding: of texts one per caption."""
    return outputs[name].unbind(1) if name in TEXT_NAMES else (outputs[name],)


def _has(outputs: Outputs, name: EmbeddingName) -> Tensor:
    """(B,) which clips have the embedding: a clip without sound has no audio embedding to compare."""
    everyone = outputs["has_video"] | outputs["has_audio"]
    return {"video": outputs["has_video"], "audio": outputs["has_audio"]}.get(name, everyone)


def _audio_audio(outputs: Outputs, scale: Tensor) -> Tensor:
    return nt_xent(outputs["audio"], outputs["augmented_audio"], scale, valid=outputs["has_audio"])


def _cross_encoder(outputs: Outputs, scale: Tensor) -> Tensor:  # noqa: ARG001
    """The mean over clips; every rank has as many."""
    _, ranks = world()
    return outputs[CROSS_ENCODER_LOSS].mean() / ranks


TEXT_IDS, CLIP_TEXT_IDS, SHARED = "text_ids", "clip_text_ids", "shared"
"""Outputs that say which captions are identical, see `Batch`."""
CROSS_ENCODER_LOSS, CAPTION_LOSS = "cross_encoder_loss", "caption_loss"
"""Outputs (B,) that are losses of single clips."""

TERMS: Mapping[str, tuple[tuple[EmbeddingName, ...], Loss]] = {
    "text_audio": (("text", "audio"), _texts("text", "audio")),
    "video_audio": (("video", "audio"), _clips("video", "audio")),
    "text_video": (("video_query", "video"), _texts("video_query", "video")),
    "text_both": (("query", "both"), _texts("query", "both")),
    "shared_text_both": (("query", "both"), _texts("query", "both", shared=True)),
    "text_experts": (("expert_queries", "expert_weights", "both"), _text_experts),
    "text_audio_experts": (("expert_queries", "expert_weights", "both"), _text_audio_experts),
    "text_text_experts": (("expert_queries", "expert_weights"), _text_text_experts),
    "audio_audio": (("audio", "augmented_audio"), _audio_audio),
    "cross_encoder": (("text", "both"), _cross_encoder),
    "text_text": (("text",), _pair("text", "text")),
    "video_video": (("video",), _pair("video", "video")),
}
"""Every term by its name in params.yaml: the embeddings that it needs, and its loss.

All compare each clip with those of all ranks, except `cross_encoder`, whose pairs come from one micro-batch; of its
FLOPs only those of a text with its own clip are counted. The last two compare embeddings with themselves and so only
push different clips apart. The published pretraining totals are `nce` = text_audio + video_audio and `tav_nce` =
text_audio + 2 video_audio; with self-supervision the first adds audio_audio, the second audio_audio + text_text +
video_video.
"""


class Objective(Protocol):
    """What a training computes of a batch, and the losses of it."""

    needs_all_clips: ClassVar[bool]
    """Whether the loss of a clip depends on other clips, those of all micro-batches and ranks. Otherwise losses are
    means over clips."""

    def outputs(self, model: Clip4Vla, batch: Batch) -> dict[str, Tensor]:
        """What the losses need, see `Outputs`."""
        ...

    def losses(self, outputs: Outputs, scale: Tensor) -> dict[str, Tensor]:
        """Named and weighted: this rank's share of the losses over the clips of all ranks, given the logit scale."""
        ...


def build_objective(
    training: PretrainingConfig | RetrievalConfig | CaptioningConfig, audio_token: AudioToken
) -> Objective:
    """The objective that a section of params.yaml describes."""
    if isinstance(training, CaptioningConfig):
        smoothing, dropout = training.label_smoothing, training.modality_dropout
        return CaptioningObjective(training.modalities, audio_token, smoothing, dropout)
    return ContrastiveObjective.of(training, audio_token)


def total_loss(losses: Mapping[str, Tensor]) -> Tensor:
    """What is minimised: the sum of the weighted terms."""
    return sum(losses.values(), start=next(iter(losses.values())) * 0)


@dataclass(frozen=True)
class ContrastiveObjective:
    """Weighted contrastive terms, computed with one setting of the audio type token."""

    weights: Mapping[str, float]
    audio_token: AudioToken

    needs_all_clips: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.weights:
            raise ValueError("every term of the objective has weight 0: there is nothing to train")

    @classmethod
    def of(cls, training: PretrainingConfig | RetrievalConfig, audio_token: AudioToken) -> "ContrastiveObjective":
        """The terms whose weight in `training` isn't 0."""
        weights = {name: getattr(training, name, 0.0) for name in TERMS}
        return cls({name: weight for name, weight in weights.items() if weight}, audio_token)

    @property
    def names(self) -> tuple[EmbeddingName, ...]:
        """The embeddings that the terms need."""
        return tuple(dict.fromkeys(name for term in self.weights for name in TERMS[term][0]))

    def outputs(self, model: Clip4Vla, batch: Batch) -> dict[str, Tensor]:
        """The embeddings of the batch and, where it is a term, the cross encoder's loss of each clip."""
        # not a module call of its own: see `engine`
        embeddings, media = model.embed(batch, audio_token=self.audio_token, names=self.names)
        ids = {TEXT_IDS: batch.text_ids, CLIP_TEXT_IDS: batch.clip_text_ids, SHARED: batch.shared}
        outputs = embeddings.tensors() | {name: value for name, value in ids.items() if value is not None}
        if "cross_encoder" in self.weights:
            # one caption of each clip, drawn again each step
            first = outputs["text"][:, 0]
            outputs[CROSS_ENCODER_LOSS] = model.cross_encoder_loss(first, outputs["both"], media)
        return outputs

    def losses(self, outputs: Outputs, scale: Tensor) -> dict[str, Tensor]:
        """Each term times its weight: this rank's share of the loss over the clips of all ranks."""
        return {name: weight * TERMS[name][1](outputs, scale) for name, weight in self.weights.items()}


@dataclass(frozen=True)
class CaptioningObjective:
    """Teacher forcing: every token of a clip's captions, given those before it and the frames and tiles."""

    modalities: Modality
    audio_token: AudioToken
    label_smoothing: float
    modality_dropout: float

    needs_all_clips: ClassVar[bool] = False

    def outputs(self, model: Clip4Vla, batch: Batch) -> dict[str, Tensor]:
        """The caption loss of each clip; which modality is dropped is drawn again each step."""
        media = model.encode_media(batch, audio_token=self.audio_token, modalities=self.modalities)
        if self.modalities == "both":
            media = media.drop(self.modality_dropout)
        return {CAPTION_LOSS: model.caption_loss(batch.tokens, media, self.label_smoothing)}

    def losses(self, outputs: Outputs, scale: Tensor) -> dict[str, Tensor]:  # noqa: ARG002
        """The mean over clips; every rank has as many."""
        _, ranks = world()
        return {"caption": outputs[CAPTION_LOSS].mean() / ranks}
