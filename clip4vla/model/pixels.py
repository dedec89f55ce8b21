"""Stored frames to the input of an image tower.

Shapes: ... any number of clips and frames, R pixels of a side.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from clip4vla.audio.precision import KeepsPrecision


class PixelNormalizer(KeepsPrecision):
    """uint8 RGB to float32, by the mean and std that the weights were trained with.

    Args:
        mean: of each channel, in 0..1.
        std: of each channel, in 0..1.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        """(..., 3, R, R) uint8 to float32 of the same shape."""
        return (frames.float() / 255 - self.mean) / self.std
