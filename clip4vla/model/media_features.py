"""What the towers make of clips, before it is pooled: all that a text, or a caption to be written, is compared with.

Shapes: B clips, F frames, T tiles, D embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from clip4vla.records import Modality


@dataclass(frozen=True)
class MediaFeatures:
    """Features of frames (B, F, D) and tiles (B, T, D), not normalised, and which of them are there."""

    frames: Tensor
    video_mask: Tensor
    """(B, F) bool."""
    tiles: Tensor
    audio_mask: Tensor
    """(B, T) bool."""

    @staticmethod
    def concatenate(parts: list[MediaFeatures]) -> MediaFeatures:
        """Those of several batches as one batch's."""
        return MediaFeatures(
            **{f.name: torch.cat([getattr(part, f.name) for part in parts]) for f in fields(MediaFeatures)}
        )

    def take(self, rows: Tensor) -> MediaFeatures:
        """Those of the clips `rows` (P,) int64, in that order."""
        return MediaFeatures(self.frames[rows], self.video_mask[rows], self.tiles[rows], self.audio_mask[rows])

    def only(self, modality: Modality) -> MediaFeatures:
        """The same with the other modality hidden; `both` hides nothing."""
        hidden = {"video": "audio_mask", "audio": "video_mask"}.get(modality)
        return self if hidden is None else replace(self, **{hidden: torch.zeros_like(getattr(self, hidden))})

    def drop(self, fraction: float) -> MediaFeatures:
        """The same with one modality, at random, hidden in a `fraction` of the clips that have both."""
        device = self.video_mask.device
        dropped = torch.rand(len(self.frames), device=device) < fraction
        dropped &= self.video_mask.any(1) & self.audio_mask.any(1)
        blind = torch.rand(len(self.frames), device=device) < 0.5
        return replace(
            self,
            video_mask=self.video_mask & ~(dropped & blind).unsqueeze(1),
            audio_mask=self.audio_mask & ~(dropped & ~blind).unsqueeze(1),
        )
