"""The published model in our code: the output of each part for the published inputs.

Shapes: B clips, F frames, T tiles, L text tokens, D embedding width, Q positions of a transformer.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from benchmarks.parity.reference import Arrays
from clip4vla.config import AudioToken
from clip4vla.model.clip4vla import MAX_SCALE, Clip4Vla, Embeddings
from clip4vla.model.fusion import pool
from clip4vla.model.media_features import MediaFeatures
from clip4vla.model.published import PUBLISHED_AUDIO, Published, from_published

TOKENS: dict[str, AudioToken] = {"-1": "none", "0": "verbal", "1": "nonverbal", "2": "sample", "3": "both"}
FUSED = ("loose_seq", "tight_seq", "cross_align")
"""Modes that use the published cross encoder, as fine-tuning saves it."""
CROSS_ENCODED = ("tight_seq", "cross_align")
HEADS = ("similarity_dense.weight", "similarity_dense.bias")
Part = tuple[Tensor, Tensor]
"""Embeddings (B, Q, D) and which of them are there (B, Q)."""


def audio_token(control: str) -> AudioToken:
    """Our name of a published control-token setting; one between 0 and 1 mixes."""
    return TOKENS[control] if control in TOKENS else float(control)


@dataclass(frozen=True)
class Inputs:
    """The arrays `in/*` in the layout of our towers."""

    arrays: Arrays

    def without_missing_sound(self) -> "Inputs":
        """The same where some clips have no sound."""
        mask = self.arrays["in/audio_mask_missing"]
        has_audio = mask.any(dim=2)[:, :, None, None, None, None]
        sounds = [key for key in ("in/audio", "in/masked_audio") if key in self.arrays]
        silenced = {key: self.arrays[key] * has_audio for key in sounds}
        return Inputs(self.arrays.replaced({"in/audio_mask": mask, **silenced}))

    @cached_property
    def tokens(self) -> Tensor:
        """(B, L) int64."""
        return self._first("input_ids")

    @cached_property
    def text_mask(self) -> Tensor:
        """(B, L) bool, which tokens are not padding."""
        return self._first("attention_mask").bool()

    @cached_property
    def video(self) -> Tensor:
        """(B, F, 3, R, R) normalised."""
        return self._first("video")[:, :, 0].float()

    @cached_property
    def video_mask(self) -> Tensor:
        """(B, F) bool."""
        return self._first("video_mask").bool()

    @cached_property
    def audio(self) -> Tensor:
        """(B, T, 3, R, R) normalised tiles."""
        return self._first("audio").float()

    @cached_property
    def masked_audio(self) -> Tensor:
        """(B, T, 3, R, R) under SpecAugment."""
        return self._first("masked_audio").float()

    @cached_property
    def audio_mask(self) -> Tensor:
        """(B, T) bool."""
        return self._first("audio_mask").bool()

    @cached_property
    def audio_types(self) -> Tensor:
        """(B,) 0 verbal, 1 nonverbal."""
        return self._first("token_types")

    def _first(self, key: str) -> Tensor:
        """The only text or clip of each pair."""
        return self.arrays[f"in/{key}"][:, 0]


@dataclass(frozen=True)
class Models:
    """The model as pretraining and as retrieval fine-tuning save it."""

    checkpoint: Mapping[str, Tensor]
    arrays: Arrays
    """With the head of the cross encoder, `retr/similarity_dense.*`, which pretraining doesn't save."""

    @property
    def finetuned_state(self) -> dict[str, Tensor]:
        """The checkpoint with the head on the cross encoder, without the caption head."""
        heads = {key: self.arrays[f"retr/{key}"] for key in HEADS}
        return {key: value for key, value in self.checkpoint.items() if not key.startswith("cls.")} | heads

    @cached_property
    def pretrained(self) -> Published:
        """Without the cross encoder."""
        return from_published(dict(self.checkpoint), PUBLISHED_AUDIO, "the pretraining checkpoint")

    @cached_property
    def finetuned(self) -> Published:
        """With the cross encoder."""
        return from_published(self.finetuned_state, PUBLISHED_AUDIO, "the checkpoint with a head")

    def encoded(self, mode: str, control: str, missing: bool = False) -> "Encoded":
        """The inputs, some without sound if `missing`, as `mode` and a control-token setting encode them."""
        inputs = Inputs(self.arrays)
        published = self.finetuned if mode in FUSED else self.pretrained
        return Encoded(mode, published, inputs.without_missing_sound() if missing else inputs, audio_token(control))


@dataclass(frozen=True)
class Encoded:
    """The model's outputs for the inputs; each is computed when it is first used."""

    mode: str
    published: Published
    inputs: Inputs
    token: AudioToken

    @property
    def model(self) -> Clip4Vla:
        """The model."""
        return self.published.model

    @cached_property
    def tokens(self) -> Tensor:
        """(B, L, D)."""
        return self.model.clip.encode_embedded(self.model.clip.embed_tokens(self.inputs.tokens))

    @cached_property
    def sentences(self) -> Tensor:
        """(B, D) unit vectors."""
        return F.normalize(self.model.encode_text(self.inputs.tokens), dim=1)

    @cached_property
    def frames(self) -> Tensor:
        """(B, F, D)."""
        return self.model.clip.visual(self.inputs.video.flatten(0, 1)).unflatten(0, self.inputs.video.shape[:2])

    @cached_property
    def tiles(self) -> Tensor:
        """(B, T, D)."""
        return self.model.encode_audio(self.inputs.audio, self.token, self._types)

    @cached_property
    def masked_tiles(self) -> Tensor:
        """(B, T, D) under SpecAugment."""
        return self.model.encode_audio(self.inputs.masked_audio, self.token, self._types)

    @cached_property
    def audio_hidden(self) -> Tensor:
        """(B * T, Q, width) at the end of the audio transformer."""
        n_tiles = self.inputs.audio.shape[1]
        types = None if self._types is None else self._types.repeat_interleave(n_tiles)
        return self.model.audio.hidden(self.inputs.audio.flatten(0, 1), self.token, types)

    @cached_property
    def visual_hidden(self) -> Tensor:
        """(B * F, Q, width) at the end of the image transformer."""
        found: list[Tensor] = []
        visual = self.model.clip.visual
        hook = visual.transformer.register_forward_hook(lambda _module, _inputs, output: found.append(output))
        visual(self.inputs.video.flatten(0, 1))
        hook.remove()
        return found[0]

    @property
    def video(self) -> Part:
        """Frames and their mask."""
        return self.frames, self.inputs.video_mask

    @property
    def audio(self) -> Part:
        """Tiles and their mask."""
        return self.tiles, self.inputs.audio_mask

    @cached_property
    def attended(self) -> tuple[Tensor, Tensor]:
        """Frames and tiles after they have attended to each other, where the model has a sequence fusion."""
        return self.model.fusion(*self.video, *self.audio) if self.model.fusion else (self.frames, self.tiles)

    def embeddings(self, augmented: bool) -> Embeddings:
        """What the pretraining objective compares, and `augmented_audio` only if `augmented`.

        A clip without sound stays in every term, as published.
        """
        everyone = torch.ones(len(self.inputs.tokens), dtype=torch.bool)
        text = self.sentences.unsqueeze(1)
        return Embeddings(
            has_video=everyone,
            has_audio=everyone,
            text=text,
            video_query=text,
            video=pool(*self.video),
            audio=pool(*self.audio),
            augmented_audio=pool(self.masked_tiles, self.inputs.audio_mask) if augmented else None,
        )

    def similarity(self, name: str) -> Tensor:
        """(B, B) cosines times 100 by their published name, in which t is text, v video and a audio.

        `t_va` compares texts with clips by both modalities, `single_*` with clips whose other modality isn't there.
        """
        clips = {
            "t_va": (self.video, self.audio),
            "single_t_v": (self.video, _nothing(self.audio)),
            "single_t_a": (_nothing(self.video), self.audio),
        }
        if name in clips:
            frames, tiles = clips[name]
            if self.mode in CROSS_ENCODED:
                return self._scores(frames, tiles)
            return MAX_SCALE * self.sentences @ self.model.fuse(*frames, *tiles).T
        return self._pooled(name)

    def _pooled(self, name: str) -> Tensor:
        """(B, B) cosines times 100 of what is pooled of one modality."""
        frames, tiles = self.attended
        text, video, audio = self.sentences, pool(frames, self.inputs.video_mask), pool(tiles, self.inputs.audio_mask)
        pairs = {
            "t_v": (text, video),
            "t_a": (text, audio),
            "a_v": (video, audio),
            "t_t": (text, text),
            "v_v": (video, video),
        }
        rows, columns = pairs[name]
        return MAX_SCALE * rows @ columns.T

    def _scores(self, frames: Part, tiles: Part) -> Tensor:
        """(B, B) scores of every text with every clip by the cross encoder."""
        text, text_mask = self.tokens, self.inputs.text_mask
        if self.mode == "tight_seq":
            text, text_mask = self.sentences.unsqueeze(1), torch.ones_like(text_mask[:, :1])
        n_clips = len(text)
        clip = torch.arange(n_clips)
        texts = [part.repeat_interleave(n_clips, dim=0) for part in (text, text_mask)]
        clips = MediaFeatures(*frames, *tiles).take(clip.repeat(n_clips))
        model = self.published.model
        assert model.cross_encoder is not None
        assert model.fusion is not None
        scores: Tensor = model.cross_encoder(model.fusion, *texts, clips)
        return scores.view(n_clips, n_clips)

    @property
    def _types(self) -> Tensor | None:
        return self.inputs.audio_types if self.token == "sample" else None


def _nothing(part: Part) -> Part:
    """A modality of length 0."""
    return part[0][:, :0], part[1][:, :0]
