"""A second, slower opinion for the best few candidates: text, frames and tiles read together by one transformer.

In: pairs of a text and a clip. Out: one score a pair. It can't be computed from the vectors that retrieval stores,
so it costs a pass for each pair and is meant for re-ranking. Source: `tight_seq` and `cross_align` of the code
published with CLIP4VLA.

Shapes: P pairs, L text positions (1 for a sentence vector), F frames, T tiles, D embedding width.
"""

import torch
from torch import Tensor, nn

from clip4vla.model.fusion import AUDIO_TYPE, TEXT_TYPE, VIDEO_TYPE, SequenceFusion

SCALE = 100.0
"""What the published code multiplies the score with."""


class CrossScorer(nn.Module):
    """Scores pairs with the blocks of a `SequenceFusion` and one linear layer.

    Args:
        fusion: the transformer, shared with the model.
    """

    def __init__(self, fusion: SequenceFusion) -> None:
        super().__init__()
        self.fusion = fusion
        self.similarity = nn.Linear(fusion.positional_embedding.shape[1], 1)

    def forward(
        self, text: Tensor, text_mask: Tensor, frames: Tensor, video_mask: Tensor, tiles: Tensor, audio_mask: Tensor
    ) -> Tensor:
        """Scores (P,) of pairs.

        Args:
            text: (P, L, D), the unit sentence vector alone (`tight_seq`), or all words (`cross_align`).
            text_mask: (P, L) bool.
            frames: (P, F, D) features as the tower gives them; F may be 0.
            video_mask: (P, F) bool.
            tiles: (P, T, D) likewise; T may be 0.
            audio_mask: (P, T) bool.
        """
        types = [TEXT_TYPE] * text.shape[1] + [VIDEO_TYPE] * frames.shape[1] + [AUDIO_TYPE] * tiles.shape[1]
        mask = torch.cat([text_mask, video_mask, audio_mask], dim=1)
        read = self.fusion.attend(torch.cat([text, frames, tiles], dim=1), mask, types)
        return SCALE * self.similarity(read[:, 0]).squeeze(1)
