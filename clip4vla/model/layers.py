"""Layers of the towers: parameters, initialisation and results of CLIP's, in fewer passes over memory.

Names and shapes of parameters are those of open_clip, so that weights of either load into the other.

Shapes: N sequences, L positions, W width, R pixels of a side, P pixels of a patch, U tokens of a vocabulary of V.
"""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint


class SelfAttention(nn.MultiheadAttention):
    """Multi-head self-attention of a batch of sequences, which come first.

    Where torch's module cuts queries, keys and values out of one projection, autograd fills a tensor of the size of
    that projection with zeros for each of them; here their gradients are written once. Without gradients it is torch's
    module, so that features are open_clip's to the last bit.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, batch_first=True)

    def forward(self, hidden: Tensor, attn_mask: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """What the positions of `hidden` (N, L, W) find in each other.

        Args:
            hidden: the sequences.
            attn_mask: (L, L) or (N * heads, L, L), added to the attention before the softmax.
        """
        attn_mask = None if attn_mask is None else attn_mask.to(hidden.dtype)
        if not torch.is_grad_enabled():
            return super().forward(hidden, hidden, hidden, need_weights=False, attn_mask=attn_mask)[0]
        if attn_mask is not None and attn_mask.ndim == 3:
            attn_mask = attn_mask.unflatten(0, (len(hidden), -1))
        projected = F.linear(hidden, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        return self.out_proj(found.transpose(1, 2).flatten(2))


class QuickGELU(nn.Module):
    """The approximation of GELU with which OpenAI trained."""

    def forward(self, hidden: Tensor) -> Tensor:
        """`hidden` of any shape."""
        return hidden * torch.sigmoid(1.702 * hidden)


class LayerScale(nn.Module):
    """A learned factor of each of the W features, `initial` at first."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(initial * torch.ones(width))

    def forward(self, hidden: Tensor) -> Tensor:
        """`hidden` (..., W)."""
        return hidden * self.gamma


class Block(nn.Module):
    """Attention and an MLP, each after a norm and beside a residual path.

    Args:
        width: W.
        heads: of the attention.
        activation: of the MLP.
        mlp_ratio: width of the MLP by W.
        ls_init_value: first value of a learned factor of both results; None: there is no such factor.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        activation: type[nn.Module] = nn.GELU,
        mlp_ratio: float = 4.0,
        ls_init_value: float | None = None,
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.ls_1 = nn.Identity() if ls_init_value is None else LayerScale(width, ls_init_value)
        self.ln_2 = nn.LayerNorm(width)
        hidden = int(width * mlp_ratio)
        layers = {"c_fc": nn.Linear(width, hidden), "gelu": activation(), "c_proj": nn.Linear(hidden, width)}
        self.mlp = nn.Sequential(OrderedDict(layers))
        self.ls_2 = nn.Identity() if ls_init_value is None else LayerScale(width, ls_init_value)

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """The sequences `x` (N, L, W); `attn_mask` as in `SelfAttention`."""
        x = x + self.ls_1(self.attn(self.ln_1(x), attn_mask))
        return x + self.ls_2(self.mlp(self.ln_2(x)))


class Blocks(nn.Module):
    """The blocks of a tower. The first `recomputed` of them keep only their input for the backward pass.

    There they run again, by the same operations on the same numbers, so that gradients are the same to the last bit.

    Args:
        width: W.
        layers: number of blocks.
        heads: of each block; `block` holds its further arguments.
    """

    resblocks: Any
    """A `nn.ModuleList` of `Block`."""

    def __init__(self, width: int, layers: int, heads: int, **block: Any) -> None:
        super().__init__()
        self.width, self.recomputed = width, 0
        self.resblocks = nn.ModuleList([Block(width, heads, **block) for _ in range(layers)])

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """The sequences `x` (N, L, W) after all blocks; `attn_mask` is added to their attention before the softmax."""
        for index, block in enumerate(self.resblocks):
            again = index < self.recomputed
            x = checkpoint(block, x, attn_mask, use_reentrant=False) if again else block(x, attn_mask)
        return x


class PatchEmbedding(nn.Conv2d):
    """A convolution of square patches that don't overlap: with gradients, one product with its weight (W, 3, P, P).

    On a GPU it is always the product, for a convolution may round its factors to TF32 there, and the passes with and
    without gradients must agree.
    """

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__(3, width, patch_size, stride=patch_size, bias=False)

    def forward(self, images: Tensor) -> Tensor:
        """(N, W, R / P, R / P) of `images` (N, 3, R, R)."""
        if not torch.is_grad_enabled() and images.device.type == "cpu":
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
