"""The model: texts, frames and waveforms in, one unit vector per clip and view out, or captions by its decoder.

The forward pass ends at features; losses are elsewhere, because training over large batches computes features in
micro-batches, the loss over all of them, and gradients through the towers afterwards (GradCache, arXiv 2101.06983).

Shapes: B clips, F frames, C audio channels, S samples, T audio tiles, R pixels of an image's side and rows and bands
of a tile, K sentences of a clip, L text tokens, D embedding width.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clip4vla.audio.frontend import LogMel
from clip4vla.batch import Batch
from clip4vla.model.caption import CaptionDecoder, Memory
from clip4vla.model.cross import CrossScorer, single
from clip4vla.model.fusion import SequenceFusion, mean_of_present, pool
from clip4vla.model.percepts import Percepts
from clip4vla.model.pixels import PixelNormalizer
from clip4vla.model.towers import (
    Architecture,
    AudioTower,
    build_clip,
    embed_words,
    encode_words,
    find_architecture,
    load_clip_weights,
    read_words,
)
from clip4vla.params import AudioParams, AudioToken, ModelParams
from clip4vla.records import Modality

View = Literal["text", "video", "audio", "audio_view", "both", "cross"]
"""What can be asked of a batch: its texts, what is seen, what is heard, what is heard under SpecAugment, all of it, and
how well the cross-attending score tells its clips from their like."""
VIEWS: tuple[View, ...] = get_args(View)
TEXTS_AT_ONCE = 64
"""Texts of like length that a CPU reads together."""
MAX_SCALE = 100.0
"""CLIP's bound of the learned logit scale, and the published fixed one."""


@dataclass(frozen=True)
class Features:
    """Unit vectors (B, D) float32 of a batch, of its texts (B, K, D); None where a view wasn't asked for.

    `video` and `audio` are what the fusion makes of one modality alone. A clip without frames has zeros in `video`,
    one without sound zeros in `audio` and `audio_view`: look at the masks.
    """

    has_video: Tensor
    """(B,) bool."""
    has_audio: Tensor
    """(B,) bool."""
    text: Tensor | None = None
    video: Tensor | None = None
    audio: Tensor | None = None
    audio_view: Tensor | None = None
    both: Tensor | None = None
    cross: Tensor | None = None
    """(B,), no vectors: the loss of each clip among the clips that passed with it, see `CrossScorer.loss`."""

    @staticmethod
    def concatenate(parts: "list[Features]") -> "Features":
        """The features of several micro-batches, which were asked for the same views, as one batch's."""
        wanted = [f.name for f in fields(Features) if getattr(parts[0], f.name) is not None]
        return Features(**{name: torch.cat([getattr(part, name) for part in parts]) for name in wanted})


class Clip4Vla(nn.Module):
    """CLIP extended with hearing.

    Args:
        params: the model's section.
        audio_params: the front end's section.
        architecture: overrides what `params.architecture` names; weights are then left as initialised.
        vocabulary: the tokens of captions, as `CaptionDecoder` wants them; None makes a model that writes none.
        scores_pairs: make a model that reads a text and a clip together, too, by the blocks of its fusion.

    Raises:
        ValueError: the architecture can't be used, or its weights can't be had (see `towers`), or pairs are to be
            scored without a fusion that could do so.
    """

    def __init__(
        self,
        params: ModelParams,
        audio_params: AudioParams,
        architecture: Architecture | None = None,
        vocabulary: Tensor | None = None,
        scores_pairs: bool = False,
    ) -> None:
        super().__init__()
        self.params = params
        self.audio_params = audio_params
        self.architecture = architecture or find_architecture(params.architecture, params.weights)
        self.clip = build_clip(self.architecture)
        if architecture is None and params.weights is not None:
            load_clip_weights(self.clip, self.architecture, params.weights)
        self.audio = AudioTower(self.clip.visual)
        self.fusion = SequenceFusion(self.clip, params.fusion_layers) if params.fusion == "sequence" else None
        self.decoder = None if vocabulary is None else CaptionDecoder(self.clip, vocabulary)
        if scores_pairs and self.fusion is None:
            raise ValueError(f"model.fusion is {params.fusion!r}: texts and clips are read together only by 'sequence'")
        self.scorer = CrossScorer(self.clip.text_projection.shape[1]) if scores_pairs else None
        self.pixels = PixelNormalizer(self.architecture.image_mean, self.architecture.image_std)
        self.log_mel = LogMel(audio_params, self.image_size)
        self.logit_scale.requires_grad_(params.temperature == "learned")

    def twin(self) -> "Clip4Vla":
        """A model of the same shape, with weights as initialised."""
        vocabulary = None if self.decoder is None else self.decoder.vocabulary
        return Clip4Vla(self.params, self.audio_params, self.architecture, vocabulary, self.scorer is not None)

    @property
    def image_size(self) -> int:
        """R: pixels of an image's side, rows and bands of a tile."""
        return self.architecture.image_size

    @property
    def context_length(self) -> int:
        """The most tokens that a text may have."""
        return self.architecture.context_length

    @property
    def logit_scale(self) -> nn.Parameter:
        """(1,), the logarithm of the learned scale."""
        return self.clip.logit_scale

    def scale(self) -> Tensor:
        """(1,) float32: what similarities are multiplied with, learned but at most 100, or fixed at 100."""
        if self.params.temperature == "fixed":
            return torch.full_like(self.logit_scale, MAX_SCALE, dtype=torch.float32)
        scale = self.logit_scale.float().exp()
        # CLIP's weights arrive at the bound: a plain clamp would have no gradient there and never come down again
        return scale - (scale - MAX_SCALE).clamp(min=0).detach()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the towers' activations in the backward pass instead of keeping them."""
        self.clip.set_grad_checkpointing(enable)
        self.audio.set_grad_checkpointing(enable)
        if self.fusion is not None:
            self.fusion.transformer.grad_checkpointing = enable
        if self.decoder is not None:
            self.decoder.grad_checkpointing = enable

    def freeze_text(self) -> None:
        """Train everything but the text tower and the logit scale, which captioning has no use for."""
        self.clip.requires_grad_(False)
        self.clip.visual.requires_grad_(True)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Features (N, D) of `tokens` (N, L) at their end token, not normalised.

        A CPU reads them in groups of like length, so that little of its time goes into padding.
        """
        if self.clip.text_pool_type == "eos":
            end = (tokens == self.clip.text_eos_id).int().argmax(dim=1)
        else:
            # CLIP's end token has the highest id
            end = tokens.argmax(dim=1)
        if tokens.device.type != "cpu" or len(tokens) <= TEXTS_AT_ONCE:
            return encode_words(self.clip, tokens, end)
        order = end.argsort(stable=True)
        words = embed_words(self.clip, tokens)  # all at once: each look-up has a gradient as large as the vocabulary
        features = []
        for group in order.split(TEXTS_AT_ONCE):
            length = -(-int(end[group[-1]] + 1) // 8) * 8  # few shapes
            features.append(read_words(self.clip, words[group, :length], end[group]))
        return torch.cat(features)[order.argsort()]

    def encode_video(self, frames: Tensor) -> Tensor:
        """Features (B, F, D) of `frames` (B, F, 3, R, R) uint8 RGB, not normalised.

        Raises:
            ValueError: the frames aren't of the image tower's size.
        """
        size = (3, self.image_size, self.image_size)
        if tuple(frames.shape[2:]) != size:
            raise ValueError(f"frames are {tuple(frames.shape[2:])}, but {self.architecture.name} reads {size}")
        pixels = self.pixels(frames.flatten(0, 1))
        return self.clip.visual(pixels.to(self.clip.visual.conv1.weight.dtype)).unflatten(0, frames.shape[:2])

    def encode_audio(self, tiles: Tensor, audio_token: AudioToken, audio_types: Tensor | None = None) -> Tensor:
        """Features (B, T, D) of `tiles` (B, T, 3, R, R), not normalised; audio_types (B,) for `sample`."""
        n_tiles = tiles.shape[1]
        types = None if audio_types is None else audio_types.repeat_interleave(n_tiles)
        return self.audio(tiles.flatten(0, 1), audio_token, types).unflatten(0, tiles.shape[:2])

    def fuse(self, frames: Tensor, video_mask: Tensor, tiles: Tensor, audio_mask: Tensor) -> Tensor:
        """What is seen and heard as one (B, D), not of unit length, from features (B, F, D) and (B, T, D)."""
        if self.fusion is not None:
            frames, tiles = self.fusion(frames, video_mask, tiles, audio_mask)
        video, audio = pool(frames, video_mask), pool(tiles, audio_mask)
        return mean_of_present(video, audio, video_mask.any(1), audio_mask.any(1))

    def perceive(self, batch: Batch, *, audio_token: AudioToken, modalities: Modality) -> Percepts:
        """What is seen and heard in a batch, for captions; a modality that isn't asked for has length 0."""
        seen = heard = self._nothing(len(batch))
        if modalities != "audio":
            seen = (self.encode_video(batch.frames), batch.video_mask)
        if modalities != "vision":
            views: tuple[View, ...] = ("audio",)
            heard, _ = self._hear(batch, audio_token, views, None)
        return Percepts(*seen, *heard)

    def caption_loss(self, tokens: Tensor, percepts: Percepts, label_smoothing: float) -> Tensor:
        """Loss (B,) of each clip's captions `tokens` (B, K, L): see `CaptionDecoder.loss`."""
        decoder = self._writing()
        return decoder.loss(tokens, self._remember(decoder, percepts), label_smoothing)

    def write(self, percepts: Percepts, *, beam: int, length: int, length_penalty: float) -> Tensor:
        """Captions as tokens (B, up to `length`): see `CaptionDecoder.write`."""
        decoder = self._writing()
        memory = self._remember(decoder, percepts)
        return decoder.write(memory, beam=beam, length=length, length_penalty=length_penalty)

    def _writing(self) -> CaptionDecoder:
        if self.decoder is None:
            raise ValueError("this model writes no captions: fine-tune it for captioning first")
        return self.decoder

    def _remember(self, decoder: CaptionDecoder, percepts: Percepts) -> Memory:
        """What the decoder attends to; with a fusion, frames and tiles have attended to each other first."""
        if self.fusion is not None:
            frames, tiles = self.fusion(percepts.frames, percepts.video_mask, percepts.tiles, percepts.audio_mask)
            percepts = replace(percepts, frames=frames, tiles=tiles)
        return decoder.remember(percepts)

    def forward(
        self,
        batch: Batch,
        *,
        audio_token: AudioToken,
        views: Collection[View],
        generator: torch.Generator | None = None,
    ) -> Features:
        """The wanted views of a batch as unit vectors.

        Args:
            batch: B clips on the model's device.
            audio_token: what the audio tower listens for; `sample` reads `batch.audio_types`.
            views: what to compute; nothing else is.
            generator: draws SpecAugment's masks of `audio_view`.

        Raises:
            ValueError: see `encode_text`, `encode_video` and `LogMel`.
        """
        has_audio = batch.samples > 0
        vectors: dict[str, Tensor] = {}
        if "text" in views or "cross" in views:
            text = self.encode_text(batch.tokens.flatten(0, 1))
            vectors["text"] = F.normalize(text.float(), dim=1).unflatten(0, batch.tokens.shape[:2])
        nothing = self._nothing(len(batch))
        seen = heard = nothing
        joined = "both" in views or "cross" in views
        if "video" in views or joined:
            seen = (self.encode_video(batch.frames), batch.video_mask)
        if "audio" in views or "audio_view" in views or joined:
            heard, heard_again = self._hear(batch, audio_token, views, generator)
        if "video" in views:
            vectors["video"] = F.normalize(self.fuse(*seen, *nothing), dim=1)
        if "audio" in views:
            vectors["audio"] = F.normalize(self.fuse(*nothing, *heard), dim=1)
        if "audio_view" in views:
            vectors["audio_view"] = F.normalize(self.fuse(*nothing, *heard_again), dim=1)
        if joined:
            vectors["both"] = F.normalize(self.fuse(*seen, *heard), dim=1)
        if "cross" in views:
            scorer, fusion = self._scoring()
            # one of the sentences of each, which are drawn anew for each step
            sentences = vectors["text"][:, 0]
            vectors["cross"] = scorer.loss(fusion, sentences, vectors["both"], Percepts(*seen, *heard))
        asked = {name: found for name, found in vectors.items() if name in views}
        return Features(has_video=batch.video_mask.any(1), has_audio=has_audio, **asked)

    def cross_scores(self, text: Tensor, percepts: Percepts) -> Tensor:
        """How well each text and clip go together, read as one: (P,) of unit vectors (P, D) and P clips.

        Raises:
            ValueError: the model doesn't score pairs.
        """
        scorer, fusion = self._scoring()
        return scorer(fusion, *single(text), percepts)

    def _scoring(self) -> tuple[CrossScorer, SequenceFusion]:
        if self.scorer is None or self.fusion is None:
            raise ValueError("this model scores no pairs: fine-tune it with finetune.text_cross first")
        return self.scorer, self.fusion

    def _nothing(self, number: int) -> tuple[Tensor, Tensor]:
        """Features (B, 0, D) and mask (B, 0) of a modality that isn't looked at."""
        empty = self.logit_scale.new_empty((number, 0, self.clip.text_projection.shape[1]))
        return empty, torch.empty((number, 0), dtype=torch.bool, device=empty.device)

    def _hear(
        self, batch: Batch, audio_token: AudioToken, views: Collection[View], generator: torch.Generator | None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(features, mask) of the tiles and of their augmented view, empty where not wanted."""
        plain = augmented = self._nothing(len(batch))
        if "audio_view" in views:
            tiles, tiles_view, mask = self.log_mel.forward_views(batch.waveform, batch.samples, generator)
            augmented = (self.encode_audio(tiles_view, audio_token, batch.audio_types), mask)
        else:
            tiles, mask = self.log_mel(batch.waveform, batch.samples)
        if {"audio", "both", "cross"} & set(views):
            plain = (self.encode_audio(tiles, audio_token, batch.audio_types), mask)
        return plain, augmented
