"""CLIP's text and image tower (Radford et al., arXiv 2103.00020), as open_clip's plain models have them.

In: tokens, pixels. Out: features. Names and shapes of parameters, and how they are initialised, are those of
`open_clip.CLIP`, so that its checkpoints load. Importing open_clip itself takes longer than everything else that a
search needs.

Shapes: N texts or images, L text tokens, R pixels of a side, G patches of an image, W width of a tower, D embedding
width.
"""

import math

import torch
from torch import Tensor, nn

from clip4vla.model.layers import Blocks, PartialEmbedding, PatchEmbedding

INITIAL_SCALE = math.log(1 / 0.07)
END_BY_NUMBER, END_BY_ID = "argmax", "eos"
"""The end token is the one with the highest id, or the one with the id `eos_id`."""


class ImageTower(nn.Module):
    """A transformer over the patches of an image, pooled by its class token.

    Args:
        embed_dim: D.
        activation: of the MLPs.
        image_size, patch_size, width, layers, head_width, mlp_ratio, ls_init_value: `vision_cfg` of open_clip.
    """

    def __init__(
        self,
        embed_dim: int,
        activation: type[nn.Module],
        *,
        image_size: int = 224,
        patch_size: int = 16,
        width: int = 768,
        layers: int = 12,
        head_width: int = 64,
        mlp_ratio: float = 4.0,
        ls_init_value: float | None = None,
    ) -> None:
        super().__init__()
        scale = width**-0.5
        self.conv1 = PatchEmbedding(width, patch_size)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn((image_size // patch_size) ** 2 + 1, width))
        self.ln_pre = nn.LayerNorm(width)
        block = {"activation": activation, "mlp_ratio": mlp_ratio, "ls_init_value": ls_init_value}
        self.transformer = Blocks(width, layers, width // head_width, **block)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, embed_dim))

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, D) of normalised `images` (N, 3, R, R), not normalised themselves."""
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(images), 1, -1).to(patches.dtype)
        sequence = torch.cat([first, patches], dim=1) + self.positional_embedding.to(patches.dtype)
        return self.ln_post(self.transformer(self.ln_pre(sequence))[:, 0]) @ self.proj


class Clip(nn.Module):
    """A text tower, which is causal, beside an image tower.

    The logit scale has shape (1,), because DeepSpeed takes no parameter without dimensions.

    Args:
        visual: the image tower.
        embed_dim: D.
        activation: of the text tower's MLPs.
        context_length, vocab_size, width, heads, layers, mlp_ratio, ls_init_value, pool_type, eos_id: `text_cfg` of
            open_clip.
    """

    attn_mask: Tensor
    token_embedding: nn.Embedding | PartialEmbedding

    def __init__(
        self,
        visual: ImageTower,
        embed_dim: int,
        activation: type[nn.Module],
        *,
        context_length: int = 77,
        vocab_size: int = 49408,
        width: int = 512,
        heads: int = 8,
        layers: int = 12,
        mlp_ratio: float = 4.0,
        ls_init_value: float | None = None,
        pool_type: str = END_BY_NUMBER,
        eos_id: int = 2,
    ) -> None:
        super().__init__()
        self.visual = visual
        self.context_length, self.text_pool_type, self.text_eos_id = context_length, pool_type, eos_id
        block = {"activation": activation, "mlp_ratio": mlp_ratio, "ls_init_value": ls_init_value}
        token_embedding = nn.Embedding(vocab_size, width)  # first, as open_clip draws its random numbers
        self.transformer = Blocks(width, layers, heads, **block)
        self.token_embedding = token_embedding
        self.positional_embedding = nn.Parameter(torch.empty(context_length, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, embed_dim))
        self.logit_scale = nn.Parameter(torch.full((1,), INITIAL_SCALE))
        mask = torch.full((context_length, context_length), -math.inf).triu_(1)
        self.register_buffer("attn_mask", mask, persistent=False)
        self._initialise()

    def _initialise(self) -> None:
        """Draw the weights of the text tower as CLIP's authors do."""
        width, layers = self.transformer.width, len(self.transformer.resblocks)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def embed_tokens(self, tokens: Tensor) -> Tensor:
        """The input (N, L, W) of the text tower's blocks for `tokens` (N, L): token plus position embeddings.

        Raises:
            ValueError: L is more than the context length.
        """
        length = tokens.shape[1]
        if length > self.context_length:
            raise ValueError(f"texts of {length} tokens don't fit the text tower, which reads {self.context_length}")
        dtype = self.text_projection.dtype
        embedded: Tensor = self.token_embedding(tokens).to(dtype)
        return embedded + self.positional_embedding[:length].to(dtype)

    def encode_embedded(self, embedded: Tensor, places: Tensor | None = None) -> Tensor:
        """Features (N, L, D) of `embedded` (N, L, W), made by `embed_tokens`, or (N, D) at `places` (N,) int64."""
        length = embedded.shape[1]
        hidden = self.transformer(embedded, self.attn_mask[:length, :length])
        if places is not None:
            hidden = hidden[torch.arange(len(embedded), device=embedded.device), places]
        return self.ln_final(hidden) @ self.text_projection

    def end_of(self, tokens: Tensor) -> Tensor:
        """(N,) position of the end token of `tokens` (N, L)."""
        if self.text_pool_type == END_BY_ID:
            return (tokens == self.text_eos_id).int().argmax(dim=1)
        return tokens.argmax(dim=1)
