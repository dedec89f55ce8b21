"""A second, slower opinion for the best few candidates: text, frames and tiles read together by one transformer.

In: pairs of a text and a clip. Out: one score a pair. It can't be computed from the vectors that retrieval stores,
so it costs a pass for each pair and is meant for re-ranking. It is trained to tell a text's clip, and a clip's text,
from the few that are nearest by their vectors: those that it will re-rank. Source: `tight_seq` and
`cross_align` of the code published with CLIP4VLA, which compares all pairs of a batch.

Shapes: B clips, P pairs, N nearest, L text positions (1 for a sentence vector), F frames, T tiles, D embedding width.
"""

import torch
from torch import Tensor, nn

from clip4vla.model.fusion import AUDIO_TYPE, TEXT_TYPE, VIDEO_TYPE, SequenceFusion
from clip4vla.model.media_features import MediaFeatures

SCALE = 100.0
"""What the published code multiplies the score with."""
NEGATIVES = 7
"""Negative clips of a text, and negative texts of a clip."""


class CrossEncoder(nn.Module):
    """Scores pairs with the blocks of a `SequenceFusion` and one linear layer of its own.

    Args:
        width: D.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.similarity = nn.Linear(width, 1)
        nn.init.zeros_(self.similarity.weight)  # untrained, all scores are 0
        nn.init.zeros_(self.similarity.bias)

    def forward(self, fusion: SequenceFusion, text: Tensor, text_mask: Tensor, media: MediaFeatures) -> Tensor:
        """Scores (P,) of pairs.

        Args:
            fusion: the model's.
            text: (P, L, D), the unit sentence vector alone (`tight_seq`), or all words (`cross_align`).
            text_mask: (P, L) bool.
            media: of P clips; F or T may be 0.
        """
        frames, tiles = media.frames, media.tiles
        types = [TEXT_TYPE] * text.shape[1] + [VIDEO_TYPE] * frames.shape[1] + [AUDIO_TYPE] * tiles.shape[1]
        mask = torch.cat([text_mask, media.video_mask, media.audio_mask], dim=1)
        sequence = torch.cat([text.to(frames.dtype), frames, tiles.to(frames.dtype)], dim=1)
        read = fusion.attend(sequence, mask, types)
        return SCALE * self.similarity(read[:, 0]).squeeze(1)

    def loss(self, fusion: SequenceFusion, text: Tensor, clips: Tensor, media: MediaFeatures) -> Tensor:
        """Loss (B,) of each clip: its text among the nearest wrong ones, and it among the nearest wrong clips.

        Args:
            fusion: the model's.
            text: (B, D), a unit sentence vector of each clip.
            clips: (B, D), what is seen and heard, as it is compared with texts; only decides what is near.
            media: of the B clips.
        """
        similarity = (text @ clips.T).detach()
        itself = torch.arange(len(text), device=text.device).unsqueeze(1)
        clip_of = torch.cat([itself, _nearest(similarity)], dim=1)
        text_of = torch.cat([itself, _nearest(similarity.T)], dim=1)
        texts = torch.cat([itself.expand_as(clip_of), text_of]).flatten()
        shown = torch.cat([clip_of, itself.expand_as(text_of)]).flatten()
        scores = self(fusion, *as_sequences(text[texts]), media.take(shown)).float().view(2, *clip_of.shape)
        return -scores.log_softmax(2)[:, :, 0].mean(0)


def as_sequences(sentences: Tensor) -> tuple[Tensor, Tensor]:
    """Sentence vectors (P, D) as sequences of one, and their mask."""
    return sentences.unsqueeze(1), torch.ones_like(sentences[:, :1], dtype=torch.bool)


def _nearest(similarity: Tensor) -> Tensor:
    """(B, N) columns of `similarity` (B, B) with the highest values but for each row's own, all where there are few."""
    itself = torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    return similarity.masked_fill(itself, -torch.inf).topk(min(NEGATIVES, len(similarity) - 1), dim=1).indices
