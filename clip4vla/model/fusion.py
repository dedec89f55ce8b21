"""How the features of frames and tiles become one vector of a clip, and how seeing and hearing become one.

In: features of frames (B, F, D) and tiles (B, T, D) with their masks. Out: vectors (B, D). Two fusions: the mean
of what is seen and heard, and a transformer that first lets frames and tiles attend to each other; they are the
published `feat_avg` and `loose_seq`.

Shapes: B clips, F frames, T tiles, Q sequence positions, D embedding width.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from clip4vla.model.clip import Clip

TEXT_TYPE, VIDEO_TYPE, AUDIO_TYPE = 0, 1, 2
"""Rows of the modality embedding, in the published order."""
MASKED = -1e6
"""Added to the attention of what is masked: finite, so that a clip without anything has no NaN."""


def pool(features: Tensor, mask: Tensor) -> Tensor:
    """Unit vectors (B, D): the mean direction of the valid rows of `features` (B, Q, D), mask (B, Q) bool.

    A clip without a valid row gets zeros.
    """
    weights = mask.unsqueeze(2).float()
    directions = F.normalize(features.float(), dim=2) * weights
    return F.normalize(directions.sum(1) / weights.sum(1).clamp(min=1), dim=1)


def mean_of_present(video: Tensor, audio: Tensor, has_video: Tensor, has_audio: Tensor) -> Tensor:
    """Mean (B, D) of the unit vectors `video` and `audio` (B, D); a missing one leaves the other alone.

    It isn't of unit length: the published code compares texts with this very mean.
    """
    present = torch.stack([has_video, has_audio], dim=1).float().unsqueeze(2)
    both = torch.stack([video, audio], dim=1)
    return (both * present).sum(1) / present.sum(1).clamp(min=1)


class SequenceFusion(nn.Module):
    """A transformer over [frames, tiles] (or any sequence of features), initialised from CLIP's text tower.

    Args:
        clip: the first `layers` blocks and the position embedding of its text tower are copied.
        layers: number of blocks.

    Raises:
        ValueError: the text tower has too few blocks, or isn't as wide as the embedding.
    """

    def __init__(self, clip: Clip, layers: int) -> None:
        super().__init__()
        blocks, width = clip.transformer.resblocks, clip.text_projection.shape[1]
        if layers > len(blocks):
            raise ValueError(f"model.fusion_layers is {layers}, but the text tower has only {len(blocks)} blocks")
        if clip.transformer.width != width:
            raise ValueError(
                f"model.fusion 'sequence' starts from the text tower, whose width is {clip.transformer.width} while "
                f"the embedding's is {width}: choose 'mean' for this architecture"
            )
        self.positional_embedding = nn.Parameter(clip.positional_embedding.detach().clone())
        self.type_embedding = nn.Parameter(torch.randn(3, width) * 0.02)
        self.transformer = copy.deepcopy(clip.transformer)
        self.transformer.resblocks = self.transformer.resblocks[:layers]

    def forward(self, frames: Tensor, video_mask: Tensor, tiles: Tensor, audio_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Frames (B, F, D) and tiles (B, T, D) that have attended to each other; either may be of length 0."""
        types = [VIDEO_TYPE] * frames.shape[1] + [AUDIO_TYPE] * tiles.shape[1]
        sequence = torch.cat([frames, tiles.to(frames.dtype)], dim=1)
        attended = self.attend(sequence, torch.cat([video_mask, audio_mask], dim=1), types)
        return attended[:, : frames.shape[1]], attended[:, frames.shape[1] :]

    def attend(self, sequence: Tensor, mask: Tensor, types: list[int]) -> Tensor:
        """Sequence (B, Q, D) after attention among the positions where `mask` (B, Q) is True.

        Args:
            sequence: features.
            mask: which positions are there.
            types: modality of each of the Q positions.

        Raises:
            ValueError: the sequence is longer than the position embedding.
        """
        length = sequence.shape[1]
        if length > len(self.positional_embedding):
            raise ValueError(
                f"the fusion reads sequences of at most {len(self.positional_embedding)}, not {length}: "
                "take fewer frames or tiles"
            )
        sequence = sequence + (self.positional_embedding[:length] + self.type_embedding[types]).to(sequence.dtype)
        return self.transformer(sequence, attn_mask=self._attention_mask(mask))

    def _attention_mask(self, mask: Tensor) -> Tensor:
        """(B * heads, Q, Q) additive mask from (B, Q) bool."""
        heads = self.transformer.resblocks[0].attn.num_heads
        additive = torch.where(mask, 0.0, MASKED).unsqueeze(1).expand(-1, mask.shape[1], -1)
        return additive.repeat_interleave(heads, dim=0)
