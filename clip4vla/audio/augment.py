"""SpecAugment: which rows and bands of a log-mel spectrogram the self-supervised view doesn't get to see.

In: the number of valid rows of each clip and a random generator. Out: the masks drawn, and the cells they cover.
What a covered cell is filled with is the front end's business. Source: Park et al., arXiv 1904.08779, with the
numbers of CLIP4VLA's published code and without time warping.

Shapes: B clips, M masks, R bands, N rows of the whole spectrogram.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clip4vla.config import AudioConfig


@dataclass(frozen=True)
class SpecMasks:
    """The masks of B clips as (start, width) pairs; a width of 0 covers nothing."""

    time: Tensor
    """(B, M, 2) int64, in rows."""
    frequency: Tensor
    """(B, M', 2) int64, in bands."""

    def covered(self, rows: int, bands: int) -> Tensor:
        """(B, rows, bands) bool, True where a cell lies under a mask."""
        return self.covered_rows(rows).unsqueeze(2) | self.covered_bands(bands).unsqueeze(1)

    def covered_rows(self, rows: int) -> Tensor:
        """(B, rows) bool, True where all bands of a row lie under a mask."""
        return _covered(self.time, rows)

    def covered_bands(self, bands: int) -> Tensor:
        """(B, bands) bool, True where all rows of a band lie under a mask."""
        return _covered(self.frequency, bands)


def draw_masks(config: AudioConfig, rows: Tensor, bands: int, generator: torch.Generator | None = None) -> SpecMasks:
    """Masks for clips of `rows` (B,) int64 valid rows, on their device.

    A clip of n rows gets int(n * time_mask_fraction) time masks, so a short clip in a batch of long ones is
    treated as it would be alone. The generator may live on any device.
    """
    bands_of_each = torch.full_like(rows, bands)
    return SpecMasks(
        time=_draw(rows, config.time_mask_fraction, config.mask_width, generator),
        frequency=_draw(bands_of_each, config.freq_mask_fraction, config.mask_width, generator),
    )


def _draw(lengths: Tensor, fraction: float, most: int, generator: torch.Generator | None) -> Tensor:
    """(B, M, 2): widths uniform over 0..most, starts uniform over the places where the mask fits."""
    device = generator.device if generator is not None else lengths.device
    counts = (lengths.double() * fraction).long()
    shape = (len(lengths), int(counts.max()) if len(lengths) else 0)
    width = torch.randint(0, most + 1, shape, generator=generator, device=device).to(lengths.device)
    place = torch.rand(shape, generator=generator, device=device, dtype=torch.float64).to(lengths.device)
    width = torch.minimum(width, lengths.unsqueeze(1))
    width[torch.arange(shape[1], device=lengths.device) >= counts.unsqueeze(1)] = 0
    start = (place * (lengths.unsqueeze(1) - width + 1)).long()
    return torch.stack([start, width], dim=2)


def _covered(masks: Tensor, length: int) -> Tensor:
    """(B, length) bool, True at the positions that one of the masks (B, M, 2) covers."""
    position = torch.arange(length, device=masks.device)
    start, width = masks.unsqueeze(3).unbind(2)
    return ((position >= start) & (position < start + width)).any(1)
