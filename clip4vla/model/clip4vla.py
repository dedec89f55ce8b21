"""The model: texts, frames and waveforms in, one unit vector per clip and kind out, or captions by its decoder.

The forward pass ends at embeddings; losses are elsewhere, because training over large batches computes embeddings in
micro-batches, the loss over all of them, and gradients through the towers afterwards (GradCache, arXiv 2101.06983).

Shapes: B clips, F frames, C audio channels, S samples, T audio tiles, R pixels of an image's side and rows and bands
of a tile, K captions of a clip, L text tokens, D embedding width.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clip4vla.audio.frontend import LogMel, max_samples
from clip4vla.clips.batch import Batch
from clip4vla.config import AudioConfig, AudioToken, AugmentationConfig, ModelConfig
from clip4vla.model.audio_tower import AudioTower
from clip4vla.model.caption_decoder import CaptionDecoder, Memory
from clip4vla.model.cross_encoder import CrossEncoder, as_sequences
from clip4vla.model.experts import Experts, weighted
from clip4vla.model.fusion import SequenceFusion, mean_of_present, pool
from clip4vla.model.layers import Blocks, PartialEmbedding
from clip4vla.model.media_features import MediaFeatures
from clip4vla.model.pixels import PixelNormalizer
from clip4vla.model.tokenizer import Tokenizer
from clip4vla.model.towers import Architecture, build_clip, find_architecture, load_clip_weights
from clip4vla.records import Modality

if TYPE_CHECKING:
    from clip4vla.clips.transform import ClipTransform

EmbeddingName = Literal[
    "text", "query", "video_query", "expert_queries", "expert_weights", "video", "audio", "augmented_audio", "both"
]
"""The embeddings of a batch: its texts, and the texts as queries for `both` and for `video`, which differ from `text`
only with experts; the queries for each expert and their weights, which only a model with experts has; its video, its
audio, its audio under SpecAugment; video and audio fused."""
TEXT_NAMES: frozenset[EmbeddingName] = frozenset({"text", "query", "video_query", "expert_queries", "expert_weights"})
TEXTS_AT_ONCE = 64
"""Texts of similar length that a CPU encodes together."""
MAX_SCALE = 100.0
"""CLIP's bound of the learned logit scale, and the published fixed one."""


@dataclass(frozen=True)
class Embeddings:
    """Vectors (B, D) float32 of a batch, of its texts (B, K, D); None where one was not asked for.

    They have unit length. In a model with experts, `both` (B, E * D) is the concatenation of E unit vectors, `query`
    (B, K, E * D) a unit vector, and the weights are no vectors (see `experts`).

    `video` and `audio` are what the fusion makes of one modality alone. A clip without frames has zeros in `video`,
    one without sound zeros in `audio` and `augmented_audio`: see the masks.
    """

    has_video: Tensor
    """(B,) bool."""
    has_audio: Tensor
    """(B,) bool."""
    text: Tensor | None = None
    query: Tensor | None = None
    video_query: Tensor | None = None
    expert_queries: Tensor | None = None
    """(B, K, E, D), of a model with experts."""
    expert_weights: Tensor | None = None
    """(B, K, E), likewise."""
    video: Tensor | None = None
    audio: Tensor | None = None
    augmented_audio: Tensor | None = None
    both: Tensor | None = None

    def tensors(self) -> dict[str, Tensor]:
        """Masks and embeddings by name, without those that were not asked for."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


class Clip4Vla(nn.Module):
    """CLIP extended with an audio tower.

    Args:
        config: of the towers and their fusion.
        audio_config: of the log-mel front end.
        architecture: overrides what `config.architecture` names; weights then stay as initialised.
        vocabulary: the tokens of captions, see `CaptionDecoder`; None makes a model without a caption decoder.
        has_cross_encoder: make a model that also scores pairs of a text and a clip, by the blocks of its fusion.

    Raises:
        ValueError: the architecture can't be used, or its weights can't be found (see `towers`), or a cross encoder
            is asked for without a sequence fusion.
    """

    def __init__(
        self,
        config: ModelConfig,
        audio_config: AudioConfig,
        architecture: Architecture | None = None,
        vocabulary: Tensor | None = None,
        has_cross_encoder: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.audio_config = audio_config
        self.architecture = architecture or find_architecture(config.architecture, config.weights)
        self.clip = build_clip(self.architecture)
        if architecture is None and config.weights is not None:
            load_clip_weights(self.clip, self.architecture, config.weights)
        self.audio = AudioTower(self.clip.visual)
        self.fusion = SequenceFusion(self.clip, config.fusion_layers) if config.fusion == "sequence" else None
        self.experts = Experts(1 + len(config.audio_experts), self.width) if config.fusion == "experts" else None
        self.decoder = None if vocabulary is None else CaptionDecoder(self.clip, vocabulary)
        if has_cross_encoder and self.fusion is None:
            raise ValueError(f"model.fusion is {config.fusion!r}: the cross encoder needs 'sequence'")
        self.cross_encoder = CrossEncoder(self.width) if has_cross_encoder else None
        self.pixels = PixelNormalizer(self.architecture.image_mean, self.architecture.image_std)
        self.log_mel = LogMel(audio_config, self.image_size)
        self.logit_scale.requires_grad_(config.temperature == "learned")

    def with_initial_weights(self) -> "Clip4Vla":
        """A model of the same shape with weights as initialised."""
        vocabulary = None if self.decoder is None else self.decoder.vocabulary
        has_cross_encoder = self.cross_encoder is not None
        return Clip4Vla(self.config, self.audio_config, self.architecture, vocabulary, has_cross_encoder)

    @property
    def image_size(self) -> int:
        """R: pixels of an image's side, rows and bands of a tile."""
        return self.architecture.image_size

    @property
    def width(self) -> int:
        """D: width of the embedding of one modality."""
        return int(self.clip.text_projection.shape[1])

    @property
    def context_length(self) -> int:
        """Most tokens of a text."""
        return self.architecture.context_length

    @property
    def logit_scale(self) -> nn.Parameter:
        """(1,), the logarithm of the learned scale."""
        return self.clip.logit_scale

    def tokenizer(self, max_tokens: int) -> Tokenizer:
        """The tokenizer of the text tower, for texts of at most `max_tokens`, or its context length if that is less."""
        return Tokenizer(min(max_tokens, self.context_length))

    def clip_transform(
        self,
        frames: int,
        max_tokens: int,
        captions_per_clip: int = 1,
        circular_shift: bool = False,
        min_words: int = 0,
        shared_captions_per_clip: int = 0,
        identical_captions_match: bool = False,
        augmentation: AugmentationConfig = AugmentationConfig(),  # noqa: B008 (frozen)
    ) -> "ClipTransform":
        """How clips become batches of this model; see `TrainingConfig` for the arguments."""
        from clip4vla.clips.transform import ClipTransform  # the model itself needs neither PyArrow nor PyAV

        return ClipTransform(
            frames,
            self.image_size,
            max_samples(self.audio_config, self.image_size),
            self.tokenizer(max_tokens),
            captions_per_clip,
            circular_shift,
            min_words,
            shared_captions_per_clip,
            identical_captions_match,
            augmentation,
        )

    def scale(self) -> Tensor:
        """(1,) float32: the factor of similarities, learned but at most 100, or fixed at 100."""
        if self.config.temperature == "fixed":
            return torch.full_like(self.logit_scale, MAX_SCALE, dtype=torch.float32)
        scale = self.logit_scale.float().exp()
        # CLIP's weights arrive at the bound: a plain clamp would have no gradient there and never come down again
        return scale - (scale - MAX_SCALE).clamp(min=0).detach()

    @property
    def blocks(self) -> int:
        """Transformer blocks of everything that training runs, which `recompute` counts."""
        return sum(number for _, number in self._stacks())

    def recompute(self, blocks: int) -> None:
        """Let the first `blocks` blocks run again in the backward pass instead of keeping their activations.

        They are counted tower by tower in the order in which they run, so that what is kept of the later ones is free
        when the earlier ones run again. Gradients are the same to the last bit.
        """
        for stack, number in self._stacks():
            stack.recomputed = min(blocks, number)
            blocks -= stack.recomputed

    def _stacks(self) -> list[tuple[Blocks | CaptionDecoder, int]]:
        """What runs blocks, and how many, in the order of a forward pass; captioning does not use the text tower."""
        towers: list[Blocks] = [self.clip.transformer] if self.decoder is None else []
        towers += [self.clip.visual.transformer, self.audio.transformer]
        towers += [self.fusion.transformer] if self.fusion is not None else []
        stacks: list[tuple[Blocks | CaptionDecoder, int]] = [(tower, len(tower.resblocks)) for tower in towers]
        return stacks if self.decoder is None else [*stacks, (self.decoder, len(self.decoder.blocks))]

    def keep_tokens(self, tokens: Tensor) -> None:
        """Train the embeddings of `tokens` (U,) int64 only; no other may occur until `whole_weights`."""
        assert isinstance(self.clip.token_embedding, nn.Embedding)
        self.clip.token_embedding = PartialEmbedding(self.clip.token_embedding, tokens)

    def whole_weights(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """`weights` of this model as those of one with the embeddings of all tokens."""
        embedding = self.clip.token_embedding
        if not isinstance(embedding, PartialEmbedding):
            return dict(weights)
        name = "clip.token_embedding.weight"
        return {**weights, name: embedding.whole(weights[name])}

    def freeze_text(self) -> None:
        """Train everything but the text tower and the logit scale, which captioning does not use."""
        self.clip.requires_grad_(False)
        self.clip.visual.requires_grad_(True)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Embeddings (N, D) of `tokens` (N, L) at their end token, not normalised."""
        (features,) = self._read_texts(tokens, lambda embedded, end: (self.clip.encode_embedded(embedded, end),))
        return features

    def _read_texts(self, tokens: Tensor, read: Callable[[Tensor, Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """What `read` makes of embedded tokens (N, L, W) and the positions (N,) of their end tokens.

        A CPU reads texts in groups of similar length, so that little of its time goes into padding.
        """
        end = self.clip.end_of(tokens)
        # all at once: each look-up has a gradient as large as the vocabulary
        embedded = self.clip.embed_tokens(tokens)
        if tokens.device.type != "cpu" or len(tokens) <= TEXTS_AT_ONCE:
            return read(embedded, end)
        order = end.argsort(stable=True)
        groups = order.split(TEXTS_AT_ONCE)
        parts = [read(embedded[group, : self._length_of(end[group])], end[group]) for group in groups]
        back = order.argsort()
        return tuple(torch.cat(of_groups)[back] for of_groups in zip(*parts, strict=True))

    def encode_video(self, frames: Tensor) -> Tensor:
        """Embeddings (B, F, D) of `frames` (B, F, 3, R, R) uint8 RGB, not normalised.

        Raises:
            ValueError: the frames do not have the size of the image tower.
        """
        size = (3, self.image_size, self.image_size)
        if tuple(frames.shape[2:]) != size:
            raise ValueError(f"frames are {tuple(frames.shape[2:])}, but {self.architecture.name} reads {size}")
        pixels = self.pixels(frames.flatten(0, 1))
        return self.clip.visual(pixels.to(self.clip.visual.conv1.weight.dtype)).unflatten(0, frames.shape[:2])

    def encode_audio(self, tiles: Tensor, audio_token: AudioToken, audio_types: Tensor | None = None) -> Tensor:
        """Embeddings (B, T, D) of `tiles` (B, T, 3, R, R), not normalised; audio_types (B,) for `sample`."""
        n_tiles = tiles.shape[1]
        types = None if audio_types is None else audio_types.repeat_interleave(n_tiles)
        return self.audio(tiles.flatten(0, 1), audio_token, types).unflatten(0, tiles.shape[:2])

    def encode_media(self, batch: Batch, *, audio_token: AudioToken, modalities: Modality) -> MediaFeatures:
        """Features of the frames and tiles of a batch; a modality that is not asked for has length 0."""
        video = audio = self._no_features(len(batch))
        if modalities != "audio":
            video = (self.encode_video(batch.frames), batch.video_mask)
        if modalities != "video":
            audio, _ = self._encode_waveform(batch, audio_token, {"audio"}, None)
        return MediaFeatures(*video, *audio)

    def fuse(self, frames: Tensor, video_mask: Tensor, tiles: Tensor, audio_mask: Tensor) -> Tensor:
        """One vector (B, D) per clip, not of unit length, from features of frames (B, F, D) and tiles (B, T, D)."""
        if self.fusion is not None:
            frames, tiles = self.fusion(frames, video_mask, tiles, audio_mask)
        video, audio = pool(frames, video_mask), pool(tiles, audio_mask)
        return mean_of_present(video, audio, video_mask.any(1), audio_mask.any(1))

    def forward(
        self,
        batch: Batch,
        *,
        audio_token: AudioToken,
        names: Collection[EmbeddingName],
        generator: torch.Generator | None = None,
    ) -> Embeddings:
        """The embeddings of a batch; see `embed`."""
        return self.embed(batch, audio_token=audio_token, names=names, generator=generator)[0]

    def embed(
        self,
        batch: Batch,
        *,
        audio_token: AudioToken,
        names: Collection[EmbeddingName],
        generator: torch.Generator | None = None,
    ) -> tuple[Embeddings, MediaFeatures]:
        """The embeddings of a batch, and the features of frames and tiles that they were made of.

        With experts they hold no features of tiles for `both`, whose tokens are not `audio_token`.

        Args:
            batch: B clips on the model's device.
            audio_token: type token of the audio tower; `sample` reads `batch.audio_types`.
            names: which embeddings to compute; nothing else is computed.
            generator: draws SpecAugment's masks of `augmented_audio`.

        Raises:
            ValueError: see `encode_text`, `encode_video` and `LogMel`.
        """
        vectors: dict[str, Tensor] = {}
        if TEXT_NAMES & set(names):
            vectors |= self._embed_texts(batch.tokens, names)
        none = self._no_features(len(batch))
        video = audio = none
        if "video" in names or "both" in names:
            video = (self.encode_video(batch.frames), batch.video_mask)
        # with experts, `both` has audio features of its own
        from_audio = {"audio", "augmented_audio"} | ({"both"} if self.experts is None else set())
        if from_audio & set(names):
            audio, augmented = self._encode_waveform(batch, audio_token, from_audio & set(names), generator)
        if "video" in names:
            vectors["video"] = F.normalize(self.fuse(*video, *none), dim=1)
        if "audio" in names:
            vectors["audio"] = F.normalize(self.fuse(*none, *audio), dim=1)
        if "augmented_audio" in names:
            vectors["augmented_audio"] = F.normalize(self.fuse(*none, *augmented), dim=1)
        has_video, has_audio = batch.video_mask.any(1), batch.samples > 0
        if "both" in names and self.experts is None:
            vectors["both"] = F.normalize(self.fuse(*video, *audio), dim=1)
        elif "both" in names:
            vectors["both"] = self._embed_by_experts(video, batch, has_video, has_audio)
        return Embeddings(has_video, has_audio, **vectors), MediaFeatures(*video, *audio)

    def _embed_texts(self, tokens: Tensor, names: Collection[EmbeddingName]) -> dict[str, Tensor]:
        """The embeddings of texts that are among `names`."""
        if self.experts is None:
            text = F.normalize(self.encode_text(tokens.flatten(0, 1)).float(), dim=1)
            vectors = {"text": text, "query": text, "video_query": text}
        else:
            text, queries, weights = self._read_by_experts(tokens.flatten(0, 1))
            vectors = {"text": text, "query": weighted(queries, weights), "video_query": queries[:, 0]}
            vectors |= {"expert_queries": queries, "expert_weights": weights}
        return {name: vector.unflatten(0, tokens.shape[:2]) for name, vector in vectors.items() if name in names}

    def _read_by_experts(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Texts (N, D), query vectors (N, E, D) and weights (N, E) of `tokens` (N, L); see `TextExperts`."""
        experts = self.experts
        assert experts is not None
        return self._read_texts(tokens, lambda embedded, end: experts.texts(self.clip.encode_embedded(embedded), end))

    @staticmethod
    def _length_of(end: Tensor) -> int:
        """Tokens to encode of texts with end tokens at `end`, a multiple of 8 so that there are few shapes."""
        return -(-int(end.max() + 1) // 8) * 8

    def _embed_by_experts(
        self, video: tuple[Tensor, Tensor], batch: Batch, has_video: Tensor, has_audio: Tensor
    ) -> Tensor:
        """`both` (B, E * D) of a model with experts: the vector of each expert, concatenated."""
        assert self.experts is not None
        tiles, mask = self.log_mel(batch.waveform, batch.samples)
        vectors = [pool(*video)]
        for token in self.config.audio_experts:
            vectors.append(pool(self.encode_audio(tiles, token), mask))
        present = torch.stack([has_video] + [has_audio] * len(self.config.audio_experts), dim=1)
        return self.experts.clips(torch.stack(vectors, dim=1), present).flatten(1)

    def embed_queries(self, tokens: Tensor) -> Tensor:
        """The text side (N, D or E * D) float32 of the score with `both`, for texts (N, L)."""
        name: EmbeddingName = "query"
        return self._embed_texts(tokens.unsqueeze(1), {name})[name][:, 0]

    def caption_loss(self, tokens: Tensor, media: MediaFeatures, label_smoothing: float) -> Tensor:
        """Loss (B,) of the captions `tokens` (B, K, L) of each clip: see `CaptionDecoder.loss`."""
        decoder = self._require_decoder()
        return decoder.loss(tokens, self._build_memory(decoder, media), label_smoothing)

    def generate(self, media: MediaFeatures, *, beam: int, length: int, length_penalty: float) -> Tensor:
        """Captions as tokens (B, up to `length`): see `CaptionDecoder.generate`."""
        decoder = self._require_decoder()
        memory = self._build_memory(decoder, media)
        return decoder.generate(memory, beam=beam, length=length, length_penalty=length_penalty)

    def cross_encoder_scores(self, text: Tensor, media: MediaFeatures) -> Tensor:
        """Scores (P,) of pairs: unit text vectors (P, D), each with one of P clips.

        Raises:
            ValueError: the model has no cross encoder.
        """
        cross_encoder, fusion = self._require_cross_encoder()
        return cross_encoder(fusion, *as_sequences(text), media)

    def cross_encoder_loss(self, text: Tensor, clips: Tensor, media: MediaFeatures) -> Tensor:
        """Loss (B,) of each clip among its nearest in the batch: see `CrossEncoder.loss`.

        Raises:
            ValueError: the model has no cross encoder.
        """
        cross_encoder, fusion = self._require_cross_encoder()
        return cross_encoder.loss(fusion, text, clips, media)

    def _require_decoder(self) -> CaptionDecoder:
        if self.decoder is None:
            raise ValueError("this model has no caption decoder: fine-tune it for captioning first")
        return self.decoder

    def _require_cross_encoder(self) -> tuple[CrossEncoder, SequenceFusion]:
        if self.cross_encoder is None or self.fusion is None:
            raise ValueError("this model has no cross encoder: fine-tune it with retrieval.cross_encoder first")
        return self.cross_encoder, self.fusion

    def _build_memory(self, decoder: CaptionDecoder, media: MediaFeatures) -> Memory:
        """The memory of the decoder; with a sequence fusion, frames and tiles have attended to each other first."""
        if self.fusion is not None:
            frames, tiles = self.fusion(media.frames, media.video_mask, media.tiles, media.audio_mask)
            media = replace(media, frames=frames, tiles=tiles)
        return decoder.build_memory(media)

    def _no_features(self, number: int) -> tuple[Tensor, Tensor]:
        """Features (B, 0, D) and mask (B, 0) of a modality that is not read."""
        empty = self.logit_scale.new_empty((number, 0, self.width))
        return empty, torch.empty((number, 0), dtype=torch.bool, device=empty.device)

    def _encode_waveform(
        self, batch: Batch, audio_token: AudioToken, names: Collection[str], generator: torch.Generator | None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """(features, mask) of the tiles and of their augmented version, empty where not asked for."""
        plain = augmented = self._no_features(len(batch))
        if "augmented_audio" in names:
            tiles, augmented_tiles, mask = self.log_mel.forward_views(batch.waveform, batch.samples, generator)
            augmented = (self.encode_audio(augmented_tiles, audio_token, batch.audio_types), mask)
        else:
            tiles, mask = self.log_mel(batch.waveform, batch.samples)
        if {"audio", "both"} & set(names):
            plain = (self.encode_audio(tiles, audio_token, batch.audio_types), mask)
        return plain, augmented
