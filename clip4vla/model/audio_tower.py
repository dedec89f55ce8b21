"""The audio tower: CLIP's image tower, reading log-mel tiles, with type tokens.

Shapes: N tiles of any number of clips, R rows and bands of a tile, G patches of a tile, W width of the tower,
D embedding width.
"""

import copy

import torch
from torch import Tensor, nn

from clip4vla.clips.batch import AUDIO_TYPE_INDEX
from clip4vla.config import AudioToken
from clip4vla.model.clip import ImageTower


class AudioTower(nn.Module):
    """A CLIP image tower that reads log-mel tiles, with type tokens.

    It starts from the image tower's weights. One or two *type tokens* stand at the end of the sequence and share
    one new row of the position embedding. Row 0 of `type_embedding` stands for speech (verbal), row 1 for all
    other sound (nonverbal). Source: Ruan et al., arXiv 2303.06591.
    """

    def __init__(self, visual: ImageTower) -> None:
        super().__init__()
        width = visual.conv1.out_channels
        self.conv1 = copy.deepcopy(visual.conv1)
        self.class_embedding = nn.Parameter(visual.class_embedding.detach().clone())
        self.type_embedding = nn.Parameter(torch.randn(2, width) * width**-0.5)
        type_position = torch.randn(1, width) * width**-0.5
        self.positional_embedding = nn.Parameter(torch.cat([visual.positional_embedding.detach(), type_position]))
        self.ln_pre = copy.deepcopy(visual.ln_pre)
        self.transformer = copy.deepcopy(visual.transformer)
        self.ln_post = copy.deepcopy(visual.ln_post)
        self.proj = nn.Parameter(visual.proj.detach().clone())

    def forward(self, tiles: Tensor, audio_token: AudioToken, audio_types: Tensor | None = None) -> Tensor:
        """Features (N, D) of `tiles` (N, 3, R, R), the class token's, not normalised.

        Args:
            tiles: normalised log-mel tiles.
            audio_token: which type tokens to append.
            audio_types: (N,) int64, read where `audio_token` is `sample`: 0 verbal, 1 nonverbal, -1 unknown,
                for which the mean of the two embeddings is taken.

        Raises:
            ValueError: `sample` without audio_types.
        """
        hidden = self.hidden(tiles, audio_token, audio_types)
        return self.ln_post(hidden[:, 0]) @ self.proj

    def hidden(self, tiles: Tensor, audio_token: AudioToken, audio_types: Tensor | None = None) -> Tensor:
        """The transformer's output (N, 1 + G + number of type tokens, W), before `ln_post`."""
        patches = self.conv1(tiles.to(self.conv1.weight.dtype)).flatten(2).transpose(1, 2)
        first = self.class_embedding.to(patches.dtype).expand(len(tiles), 1, -1)
        types = self._type_tokens(len(tiles), audio_token, audio_types).to(patches.dtype)
        last = self.positional_embedding[-1:].expand(types.shape[1], -1)
        positions = torch.cat([self.positional_embedding[:-1], last])
        sequence = torch.cat([first, patches, types], dim=1) + positions.to(patches.dtype)
        return self.transformer(self.ln_pre(sequence))

    def _type_tokens(self, number: int, audio_token: AudioToken, audio_types: Tensor | None) -> Tensor:
        """(N, 0, 1 or 2, W) embeddings that close the sequence, positions not yet added."""
        if audio_token == "none":
            return self.type_embedding[:0].expand(number, -1, -1)
        if audio_token == "both":
            return self.type_embedding.expand(number, -1, -1)
        if audio_token == "sample":
            if audio_types is None:
                raise ValueError("audio_token 'sample' needs the audio type of each tile")
            nonverbal = torch.where(audio_types < 0, 0.5, audio_types.to(self.type_embedding.dtype))
        else:
            share = AUDIO_TYPE_INDEX[audio_token] if isinstance(audio_token, str) else audio_token
            nonverbal = torch.full((number,), float(share), device=self.type_embedding.device)
        weights = torch.stack([1 - nonverbal, nonverbal], dim=1).to(self.type_embedding.dtype)
        return (weights @ self.type_embedding).unsqueeze(1)
