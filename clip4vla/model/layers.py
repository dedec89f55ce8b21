"""Layers of the towers: the parameters and results of torch's, in fewer passes over memory.

open_clip builds its towers from torch's layers; `replace_layers` puts these in their place. Names and shapes of
parameters stay, so that weights of either load into the other.

Shapes: N sequences, L positions, W width, R pixels of a side, P pixels of a patch, U tokens of a vocabulary of V.
"""

import open_clip
import torch
from open_clip.transformer import Transformer
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint


class SelfAttention(nn.MultiheadAttention):
    """Multi-head self-attention of a batch of sequences, which come first.

    Where torch's module cuts queries, keys and values out of one projection, autograd fills a tensor of the size of
    that projection with zeros for each of them; here their gradients are written once. Without gradients it is torch's
    module, so that features are open_clip's to the last bit.
    """

    @classmethod
    def of(cls, attention: nn.MultiheadAttention) -> "SelfAttention":
        """The same attention, with the very parameters of `attention`."""
        new = cls(attention.embed_dim, attention.num_heads, batch_first=True, device="meta")
        new.in_proj_weight, new.in_proj_bias = attention.in_proj_weight, attention.in_proj_bias
        new.out_proj = attention.out_proj
        return new

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """What the positions of `query` (N, L, W) find in each other, and no weights.

        Args:
            query: sequences; `key` and `value` are the same ones.
            key: see `query`.
            value: see `query`.
            need_weights: False.
            attn_mask: (L, L) or (N * heads, L, L), added to the attention before the softmax.
        """
        if not torch.is_grad_enabled():
            return super().forward(query, key, value, need_weights=need_weights, attn_mask=attn_mask)
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (len(query), -1))
        projected = F.linear(query, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return self.out_proj(found.transpose(1, 2).flatten(2)), None


class Blocks(Transformer):
    """The blocks of a tower. The first `recomputed` of them keep only their input for the backward pass.

    There they run again, by the same operations on the same numbers, so that gradients are the same to the last bit.
    """

    recomputed: int

    @classmethod
    def of(cls, transformer: Transformer) -> "Blocks":
        """The very blocks of `transformer`, none recomputed."""
        new = cls(transformer.width, 0, 1)
        new.resblocks, new.layers, new.recomputed = transformer.resblocks, transformer.layers, 0
        return new

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """The sequences `x` (N, L, W) after all blocks; `attn_mask` is added to their attention before the softmax."""
        for index, block in enumerate(self.resblocks):
            if index < self.recomputed:
                x = checkpoint(block, x, attn_mask=attn_mask, use_reentrant=False)
            else:
                x = block(x, attn_mask=attn_mask)
        return x


class PatchEmbedding(nn.Conv2d):
    """A convolution of square patches that don't overlap: with gradients, one product with its weight (W, 3, P, P)."""

    @classmethod
    def of(cls, convolution: nn.Conv2d) -> "PatchEmbedding":
        """The same convolution, with the very weight of `convolution`."""
        side = convolution.kernel_size[0]
        new = cls(convolution.in_channels, convolution.out_channels, side, stride=side, bias=False, device="meta")
        new.weight = convolution.weight
        return new

    def forward(self, images: Tensor) -> Tensor:
        """(N, W, R / P, R / P) of `images` (N, 3, R, R)."""
        if not torch.is_grad_enabled():
            return super().forward(images)
        side = self.kernel_size[0]
        patches = images.unflatten(3, (-1, side)).unflatten(2, (-1, side)).permute(0, 2, 4, 1, 3, 5)
        embedded = F.linear(patches.flatten(3), self.weight.flatten(1))
        return embedded.permute(0, 3, 1, 2)


class PartialEmbedding(nn.Module):
    """Some rows of an embedding: the others, which no text of a training has, cost neither gradient nor optimizer.

    Args:
        whole: the embedding.
        tokens: (U,) int64, the rows, each once.
    """

    places: Tensor

    def __init__(self, whole: nn.Embedding, tokens: Tensor) -> None:
        super().__init__()
        self._whole, self._tokens = whole.weight.detach(), tokens
        places = torch.full((len(self._whole),), len(tokens))
        places[tokens] = torch.arange(len(tokens))
        self.register_buffer("places", places, persistent=False)
        self.weight = nn.Parameter(self._whole[tokens], requires_grad=whole.weight.requires_grad)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., W) of `tokens` (...) int64.

        Raises:
            IndexError: a token is none of the rows (on a CPU; a GPU stops with an assertion).
        """
        return F.embedding(self.places[tokens], self.weight)

    def whole(self, weight: Tensor) -> Tensor:
        """The weight (V, W) of the whole embedding, with `weight` (U, W) for the rows of this one."""
        return self._whole.index_copy(0, self._tokens, weight.detach().to(self._whole))


def replace_layers(clip: open_clip.CLIP) -> None:
    """Replace the attentions, the patch embedding and what runs the blocks of a CLIP model by those of this module."""
    for block in (*clip.transformer.resblocks, *clip.visual.transformer.resblocks):
        block.attn = SelfAttention.of(block.attn)
    clip.visual.conv1 = PatchEmbedding.of(clip.visual.conv1)
    clip.transformer, clip.visual.transformer = Blocks.of(clip.transformer), Blocks.of(clip.visual.transformer)
