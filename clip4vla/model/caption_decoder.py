"""The caption decoder: features of frames and tiles in, sentences out, token by token.

A causal transformer that starts as CLIP's text tower, with a cross-attention to the features of frames and tiles in
each block. Its vocabulary is a subset of CLIP's, rows of the token embedding; the same rows score the next token (tied
weights). `beam_search` finds the caption, over keys and values that are computed once.

Shapes: B clips, F frames, T tiles, M positions of the memory (1 + F + T), K sentences or hypotheses of a clip,
N = B * K sentences, L tokens, V tokens of the vocabulary, W width of the text tower, D embedding width, H heads.
"""

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from clip4vla.model.beam_search import END, START, beam_search
from clip4vla.model.clip import Clip
from clip4vla.model.layers import Block
from clip4vla.model.media_features import MediaFeatures

KeysValues = tuple[Tensor, Tensor]
"""Keys and values (N, H, L or M, W / H) of attention."""

NO_MODALITY, VIDEO, AUDIO = 0, 1, 2
"""Rows of the modality embedding. The first stands alone, and is there even for a clip without frames and tiles."""


@dataclass(frozen=True)
class Memory:
    """What the decoder attends to."""

    features: Tensor
    """(B, M, D)"""
    mask: Tensor
    """(B, M) bool."""


class CaptionDecoder(nn.Module):
    """A causal transformer that generates captions.

    Args:
        clip: blocks, embeddings and final norm of its text tower are copied.
        vocabulary: (V,) int64, CLIP's ids of the tokens that a caption may have: start, end, and any others.
    """

    vocabulary: Tensor
    places: Tensor

    def __init__(self, clip: Clip, vocabulary: Tensor) -> None:
        super().__init__()
        memory_width = clip.text_projection.shape[1]
        embedding = clip.token_embedding.weight.detach()
        vocabulary = vocabulary.to(embedding.device)
        places = torch.full((len(embedding),), len(vocabulary), device=embedding.device)
        places[vocabulary] = torch.arange(len(vocabulary), device=embedding.device)
        self.register_buffer("vocabulary", vocabulary)
        self.register_buffer("places", places, persistent=False)
        self.embedding = nn.Embedding(len(vocabulary), embedding.shape[1], _weight=embedding[vocabulary])
        self.positional_embedding = nn.Parameter(clip.positional_embedding.detach().clone())
        self.blocks = nn.ModuleList([_Block(block, memory_width) for block in clip.transformer.resblocks])
        self.ln_final = copy.deepcopy(clip.ln_final)
        self.ln_memory = nn.LayerNorm(memory_width)
        self.memory_type = nn.Parameter(torch.randn(3, memory_width) * 0.02)
        self.recomputed = 0
        """How many blocks, the first ones, keep only their input for the backward pass and run again there."""

    @property
    def longest(self) -> int:
        """The most tokens of a caption, start and end included."""
        return len(self.positional_embedding)

    def build_memory(self, media: MediaFeatures) -> Memory:
        """Frames and tiles with their modality embeddings, in one sequence after a learned first position."""
        features = torch.cat([media.frames, media.tiles.to(media.frames.dtype)], dim=1)
        types = [VIDEO] * media.frames.shape[1] + [AUDIO] * media.tiles.shape[1]
        marked = self.ln_memory(features) + self.memory_type[types].to(features.dtype)
        first = self.memory_type[NO_MODALITY].to(features.dtype).expand(len(features), 1, -1)
        mask = torch.cat([media.video_mask, media.audio_mask], dim=1)
        return Memory(torch.cat([first, marked], dim=1), F.pad(mask, (1, 0), value=True))

    def forward(self, tokens: Tensor, memory: Memory) -> Tensor:
        """Logits (N, L, V) float32 of the word after each of `tokens` (N, L) int64, of K = N / B sentences a clip.

        Raises:
            IndexError: a token isn't in the vocabulary (on a CPU; a GPU stops with an assertion).
        """
        memory_kv = self._project_memory(memory, len(tokens) // len(memory.features))
        hidden, _ = self._decode(self.places[tokens], memory_kv, None)
        return self._logits(hidden)

    def loss(self, tokens: Tensor, memory: Memory, label_smoothing: float) -> Tensor:
        """Cross-entropy (B,) float32 of each clip's captions: the mean over all tokens of its K, ends included.

        Args:
            tokens: (B, K, L) int64, start and end included, anything after the end.
            memory: of the B clips.
            label_smoothing: share of the target that is spread evenly over all tokens.
        """
        rows = tokens.flatten(0, 1)
        ended = (rows == self.vocabulary[END]).cumsum(1) > 0
        rows = torch.where(ended, self.vocabulary[END], rows)
        logits, targets = self(rows[:, :-1], memory), self.places[rows[:, 1:]]
        each = F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", label_smoothing=label_smoothing)
        each, counted = each.unflatten(0, tokens.shape[:2]), (~ended[:, :-1]).unflatten(0, tokens.shape[:2])
        return (each * counted).sum((1, 2)) / counted.sum((1, 2))

    @torch.no_grad()
    def generate(self, memory: Memory, *, beam: int, length: int, length_penalty: float) -> Tensor:
        """The best caption of each clip, CLIP's token ids (B, up to `length`) int64; its end fills the rest.

        Args:
            memory: of the B clips.
            beam: hypotheses of each that are followed, 1 for a greedy search.
            length: the most tokens, the end included.
            length_penalty: see `beam_search`.

        Raises:
            ValueError: `length` is more than the decoder's positions.
        """
        if length >= self.longest:
            raise ValueError(f"captions of {length} tokens and a start don't fit the decoder, which has {self.longest}")
        steps = _Steps(self, self._project_memory(memory, beam))
        start = torch.full((len(memory.features),), START, device=memory.features.device)
        return self.vocabulary[beam_search(steps, start, beam, length, length_penalty)]

    def _project_memory(self, memory: Memory, sentences: int) -> list[tuple[KeysValues, Tensor]]:
        """For each block, what it attends to in the memory, computed once a clip and given to its K sentences."""
        mask = memory.mask.repeat_interleave(sentences, 0)[:, None, None]
        projected = [block.cross_attention.project_kv(memory.features) for block in cast("list[_Block]", self.blocks)]
        repeated = [(k.repeat_interleave(sentences, 0), v.repeat_interleave(sentences, 0)) for k, v in projected]
        return [(kv, mask) for kv in repeated]

    def _decode(
        self, places: Tensor, memory_kv: list[tuple[KeysValues, Tensor]], past: list[KeysValues] | None
    ) -> tuple[Tensor, list[KeysValues]]:
        """Hidden states (N, Q, W) of the tokens at `places` (N, Q), which follow `past`; past and present together."""
        before = 0 if past is None else past[0][0].shape[2]
        position = self.positional_embedding[before : before + places.shape[1]]
        hidden = self.embedding(places) + position.to(self.embedding.weight.dtype)
        present = []
        for index, (block, kv) in enumerate(zip(self.blocks, memory_kv, strict=True)):
            arguments = (hidden, kv, None if past is None else past[index])
            if index < self.recomputed:
                hidden, now = checkpoint(block, *arguments, use_reentrant=False)
            else:
                hidden, now = block(*arguments)
            present.append(now)
        return hidden, present

    def _logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, Q, V) float32."""
        return F.linear(self.ln_final(hidden), self.embedding.weight).float()


class _Steps:
    """The decoder as `beam_search` calls it: a token at a time, keeping the keys and values of those before."""

    def __init__(self, decoder: CaptionDecoder, memory_kv: list[tuple[KeysValues, Tensor]]) -> None:
        self._decoder = decoder
        self._seen = memory_kv
        self._past: list[KeysValues] | None = None

    def __call__(self, tokens: Tensor, origin: Tensor) -> Tensor:
        past = self._past
        if past is not None:
            past = [(keys[origin], values[origin]) for keys, values in past]
        hidden, self._past = self._decoder._decode(tokens.unsqueeze(1), self._seen, past)
        return self._decoder._logits(hidden)[:, 0].log_softmax(dim=1)


class _Block(nn.Module):
    """A block of the text tower, with a new attention to the memory between its own and the MLP."""

    def __init__(self, block: Block, memory_width: int) -> None:
        super().__init__()
        width, heads = block.attn.embed_dim, block.attn.num_heads
        self.ln_1, self.ls_1 = copy.deepcopy(block.ln_1), copy.deepcopy(block.ls_1)
        self.attention = _Attention(width, width, heads)
        self.attention.copy_weights_from(block.attn)
        self.ln_cross = nn.LayerNorm(width)
        self.cross_attention = _Attention(width, memory_width, heads)
        self.ln_2, self.mlp, self.ls_2 = (copy.deepcopy(part) for part in (block.ln_2, block.mlp, block.ls_2))

    def forward(
        self, hidden: Tensor, memory_kv: tuple[KeysValues, Tensor], past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """Hidden states (N, Q, W), and the keys and values of all tokens so far.

        Without a past the Q tokens attend causally; with one, Q is 1.
        """
        normed = self.ln_1(hidden)
        present = self.attention.project_kv(normed)
        if past is not None:
            present = (torch.cat([past[0], present[0]], dim=2), torch.cat([past[1], present[1]], dim=2))
        hidden = hidden + self.ls_1(self.attention(normed, present, causal=past is None))
        hidden = hidden + self.cross_attention(self.ln_cross(hidden), memory_kv[0], memory_kv[1])
        return hidden + self.ls_2(self.mlp(self.ln_2(hidden))), present


class _Attention(nn.Module):
    """Attention whose keys and values are computed apart, so that they can be kept."""

    def __init__(self, width: int, memory_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(memory_width, 2 * width)
        self.output = nn.Linear(width, width)

    def copy_weights_from(self, attention: nn.MultiheadAttention) -> None:
        """Take the weights of `attention`."""
        width = attention.embed_dim
        with torch.no_grad():
            for part, rows in ((self.query, slice(0, width)), (self.key_value, slice(width, None))):
                part.weight.copy_(attention.in_proj_weight[rows])
                part.bias.copy_(attention.in_proj_bias[rows])
            self.output.weight.copy_(attention.out_proj.weight)
            self.output.bias.copy_(attention.out_proj.bias)

    def project_kv(self, sequence: Tensor) -> KeysValues:
        """Keys and values of `sequence` (N, L, width or memory_width)."""
        keys, values = self.key_value(sequence).chunk(2, dim=2)
        return self._by_head(keys), self._by_head(values)

    def forward(self, hidden: Tensor, kv: KeysValues, mask: Tensor | None = None, causal: bool = False) -> Tensor:
        """What each of `hidden` (N, Q, W) finds in `kv`; `mask` (N, 1, 1, L) is True where there is something."""
        attended = F.scaled_dot_product_attention(
            self._by_head(self.query(hidden)), *kv, attn_mask=mask, is_causal=causal
        )
        return self.output(attended.transpose(1, 2).flatten(2))

    def _by_head(self, sequence: Tensor) -> Tensor:
        """(N, L, W) to (N, H, L, W / H)."""
        return sequence.unflatten(2, (self.heads, -1)).transpose(1, 2)
