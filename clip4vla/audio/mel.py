"""The mel filterbank of Slaney's Auditory Toolbox, in double precision, and the bounds of a log-mel.

Computed in single precision its narrow low bands are off by parts in a thousand, which moves log-mel values by more
than a hundredth of a dB; hence not torchaudio's. A band is the sum of a few neighbouring bins, so a product with the
whole bank would multiply by zeros for the most part.

Shapes: K FFT bins, R bands, F frames.
"""

import math

import torch
from torch import Tensor

LINEAR_HZ_PER_MEL = 200 / 3
BREAK_HZ = 1000.0
BREAK_MEL = BREAK_HZ / LINEAR_HZ_PER_MEL
LOG_STEP = math.log(6.4) / 27
"""Above the break 27 mels are a factor of 6.4 in frequency."""
POWER_FLOOR = 1e-10
SILENCE_DB = -100.0
"""What that floor is in decibels."""
DYNAMIC_RANGE_DB = 80.0
STD_FLOOR = 1e-10
BANDS_AT_ONCE = 32
"""A compromise between products that skip few zeros and products too small to be fast."""


def mel_filters(bands: int, n_fft: int, sample_rate: int) -> Tensor:
    """Triangular filters (K, R) float64 of unit area between 0 Hz and half the sample rate.

    With more bands than bins some of the lowest bands are empty.
    """
    corner = _hertz(torch.linspace(0, _mel(sample_rate / 2), bands + 2, dtype=torch.float64, device="cpu"))
    bin_hz = torch.linspace(0, sample_rate / 2, n_fft // 2 + 1, dtype=torch.float64, device="cpu").unsqueeze(1)
    lower, centre, upper = corner[:-2], corner[1:-1], corner[2:]
    rising, falling = (bin_hz - lower) / (centre - lower), (upper - bin_hz) / (upper - centre)
    return torch.minimum(rising, falling).clamp(min=0) * 2 / (upper - lower)


class MelBands:
    """The product of a power spectrum with a filterbank (K, R), a few bands at a time and only with their own bins."""

    def __init__(self, filters: Tensor) -> None:
        bands = [slice(first, first + BANDS_AT_ONCE) for first in range(0, filters.shape[1], BANDS_AT_ONCE)]
        self._parts = [(part, _bins(filters[:, part])) for part in bands]

    def __call__(self, power: Tensor, filters: Tensor, out: Tensor) -> None:
        """Write the bands (F, R) of `power` (F, K) to `out`; `filters` is the bank, of the same type and device."""
        for bands, bins in self._parts:
            torch.mm(power[:, bins], filters[bins, bands], out=out[:, bands])


def _bins(filters: Tensor) -> slice:
    """From the first bin that one of the bands (K, bands) hears to the last."""
    heard = filters.any(1).nonzero()
    return slice(int(heard.min()), int(heard.max()) + 1) if len(heard) else slice(0)


def _mel(hertz: float) -> float:
    if hertz < BREAK_HZ:
        return hertz / LINEAR_HZ_PER_MEL
    return BREAK_MEL + math.log(hertz / BREAK_HZ) / LOG_STEP


def _hertz(mel: Tensor) -> Tensor:
    curved = BREAK_HZ * torch.exp(LOG_STEP * (mel - BREAK_MEL))
    return torch.where(mel < BREAK_MEL, mel * LINEAR_HZ_PER_MEL, curved)
