"""The log-mel front end: waveforms become square "images" that a CLIP image tower can read.

In: a batch's waveforms and how many of their samples are sound. Out: normalised tiles of R rows (time) by R mel
bands with three channels (left, mean, right), and which of them exist. It runs on the waveform's device, because
storing waveforms rather than spectrograms lets the front end change without cutting any clip again.

Source: Ruan et al., arXiv 2303.06591, and the code published with it; `AudioParams.recipe` says where we differ.

Shapes: B clips, C channels, S samples, N rows of a whole spectrogram, T tiles, R rows and bands of a tile.
"""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clip4vla.audio.augment import SpecMasks, draw_masks
from clip4vla.audio.mel import mel_filters
from clip4vla.audio.precision import KeepsPrecision
from clip4vla.params import AudioParams

TILE_SECONDS = 1.792
"""What a published tile lasts: 224 rows of 128 samples at 16 kHz."""
DYNAMIC_RANGE_DB = 80.0
POWER_FLOOR = 1e-10
SILENCE_DB = -100.0
"""Decibels of the floor."""
CACHE_BYTES = 4 << 20
"""Of a core's own cache and its share of the common one, about."""
STD_FLOOR = 1e-10
TilePosition = Literal["head", "tail", "middle"]


def hop_samples(params: AudioParams, image_size: int) -> int:
    """Samples between two rows; derived so that a tile lasts as long as the published one unless it is given."""
    return params.hop or round(TILE_SECONDS * params.sample_rate / image_size)


def tile_samples(params: AudioParams, image_size: int) -> int:
    """Samples that one tile spans."""
    return hop_samples(params, image_size) * image_size


def max_samples(params: AudioParams, image_size: int) -> int:
    """The most samples that still fit `params.tiles` tiles; longer sounds are cropped to it."""
    return params.tiles * tile_samples(params, image_size) - 1


def select_tiles(count: int, most: int, position: TilePosition) -> range:
    """Which of `count` tiles are kept when at most `most` may be: the published selections.

    The middle is the run that starts at int((count - most) / 2).
    """
    kept = min(count, most)
    start = {"head": 0, "tail": count - kept, "middle": (count - kept) // 2}[position]
    return range(start, start + kept)


class LogMel(KeepsPrecision):
    """Waveforms to normalised log-mel tiles; without parameters.

    Args:
        params: the front end's section.
        image_size: R, the image size of the tower that reads the tiles.
    """

    window: Tensor
    mel_filters: Tensor

    def __init__(self, params: AudioParams, image_size: int) -> None:
        super().__init__()
        self.params = params
        self.rows = image_size
        self.hop = hop_samples(params, image_size)
        filters = mel_filters(image_size, params.n_fft, params.sample_rate)
        self.register_buffer("mel_filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(params.n_fft, dtype=torch.float64), persistent=False)

    def forward(self, waveform: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles of `waveform` (B, C, S) float in -1..1, of which `samples` (B,) int64 are sound.

        Returns:
            tiles (B, T, 3, R, R), channel, row, band; exactly 0 where there is none,
            and audio_mask (B, T) bool. T is always `params.tiles`.
        """
        log_mel, rows = self.log_mel(waveform, samples)
        return self._tile(log_mel, rows)

    def forward_augmented(
        self, waveform: Tensor, samples: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, of the view in which SpecAugment hides rows and bands."""
        _, view, audio_mask = self.forward_views(waveform, samples, generator)
        return view, audio_mask

    def forward_views(
        self, waveform: Tensor, samples: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(tiles, augmented tiles, audio_mask) for the price of one spectrogram."""
        log_mel, rows = self.log_mel(waveform, samples)
        masks = draw_masks(self.params, rows, self.rows, generator)
        tiles, audio_mask = self._tile(log_mel, rows)
        return tiles, self._augmented(log_mel, rows, tiles, masks), audio_mask

    @torch.no_grad()
    def log_mel(self, waveform: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel power in dB, floored 80 dB below the loudest cell of its clip and channel.

        Returns:
            log_mel (B, C', N, R) with C' 1 for mono and 3 for stereo (left, mean, right), and rows (B,) int64:
            1 + samples // hop are valid, none where there are no samples.

        Raises:
            ValueError: the waveform has neither one nor two channels.
        """
        if waveform.ndim != 3 or waveform.shape[1] not in (1, 2):
            raise ValueError(f"a waveform is (B, 1 or 2, S), not {tuple(waveform.shape)}")
        rows = torch.where(samples > 0, 1 + samples // self.hop, 0)
        block = self._clips_at_once(waveform)
        with torch.autocast(waveform.device.type, enabled=False):
            parts = zip(waveform.split(block), samples.split(block), rows.split(block), strict=True)
            return torch.cat([self._decibel(*part) for part in parts]), rows

    def _clips_at_once(self, waveform: Tensor) -> int:
        """All of them on a GPU; on a CPU as many as have a spectrum that its cache holds."""
        if waveform.device.type != "cpu":
            return len(waveform)
        spectrum_bytes = waveform.shape[1] * waveform.shape[2] // self.hop * (self.params.n_fft // 2 + 1) * 8
        return max(1, CACHE_BYTES // max(1, spectrum_bytes))

    def _decibel(self, waveform: Tensor, samples: Tensor, rows: Tensor) -> Tensor:
        """`log_mel` of a block of clips; each step takes the memory of the one before."""
        power = self._power(_silenced_after(waveform, samples))
        mel = power @ self.mel_filters.to(power.dtype)
        decibel = mel.clamp_(min=POWER_FLOOR).log10_().mul_(10)
        decibel.masked_fill_(~_valid_rows(rows, decibel.shape[2])[:, None, :, None], SILENCE_DB)
        loudest = decibel.amax(dim=(2, 3), keepdim=True)
        return torch.maximum(decibel, loudest - DYNAMIC_RANGE_DB, out=decibel)

    def _power(self, waveform: Tensor) -> Tensor:
        """Power spectrogram (B, C', N, n_fft // 2 + 1), centred on its rows, padded with zeros."""
        n_clips, n_channels, _ = waveform.shape
        spectrum = torch.stft(
            waveform.flatten(0, 1),
            self.params.n_fft,
            hop_length=self.hop,
            window=self.window.to(waveform.dtype),
            center=True,
            pad_mode="constant",
            return_complex=True,
        )
        spectrum = spectrum.transpose(1, 2).unflatten(0, (n_clips, n_channels))
        if n_channels == 2:
            left, right = spectrum.unbind(1)
            spectrum = torch.stack([left, (left + right) / 2, right], dim=1)
        return spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)

    @torch.no_grad()
    def _tile(self, log_mel: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Cut (B, C', N, R) into normalised tiles (B, T, 3, R, R) and their audio_mask (B, T)."""
        valid = _valid_rows(rows, log_mel.shape[2])[:, None, :, None]
        if self.params.recipe == "published":
            # padding is loud and counts, and an exact multiple is padded by one whole tile
            places, audio_mask = self._places(torch.where(rows > 0, rows // self.rows + 1, 0))
            cells = self._cut(log_mel.masked_fill(~valid, 0.0), places)
            counted = torch.ones_like(cells[:, :, :1, :, :1], dtype=torch.bool)
        else:
            places, audio_mask = self._places(-(-rows // self.rows))
            cells, counted = self._cut(log_mel, places), self._cut(valid, places)
        tiles = _normalised(cells, counted) * audio_mask[:, :, None, None, None]
        return tiles.expand(-1, -1, 3, -1, -1), audio_mask

    @torch.no_grad()
    def _augmented(self, log_mel: Tensor, rows: Tensor, tiles: Tensor, masks: SpecMasks) -> Tensor:
        """The tiles (B, T, 3, R, R) with `masks` on them."""
        covered = masks.covered(log_mel.shape[2], self.rows).unsqueeze(1)
        if self.params.recipe == "published":
            return self._tile(log_mel.masked_fill(covered, 0.0), rows)[0]
        places, _ = self._places(-(-rows // self.rows))
        # a normalised tile's mean is 0, which is what the masks are to be filled with
        return tiles.masked_fill(self._cut(covered, places), 0.0)

    def _places(self, counts: Tensor) -> tuple[Tensor, Tensor]:
        """Which tile of a clip stands at each of the T places: indices and audio_mask, both (B, T).

        A clip with more than T tiles keeps its middle.
        """
        kept = counts.clamp(max=self.params.tiles).unsqueeze(1)
        place = torch.arange(self.params.tiles, device=counts.device)
        return place + (counts.unsqueeze(1) - kept) // 2, place < kept

    def _cut(self, cells: Tensor, places: Tensor) -> Tensor:
        """Rows of (B, X, N, Y) as tiles (B, T, X, R, Y), 0 beyond the last row; arbitrary where there is no tile."""
        n_tiles = cells.shape[2] // self.rows + 1
        cells = F.pad(cells, (0, 0, 0, n_tiles * self.rows - cells.shape[2]))
        tiles = cells.unflatten(2, (n_tiles, self.rows)).transpose(1, 2)
        clips = torch.arange(len(places), device=places.device).unsqueeze(1)
        return tiles[clips, places.clamp(max=n_tiles - 1)]


def _silenced_after(waveform: Tensor, samples: Tensor) -> Tensor:
    """The waveform in at least float32, exactly 0 after each clip's end."""
    waveform = waveform if waveform.dtype == torch.float64 else waveform.float()
    sounding = torch.arange(waveform.shape[2], device=waveform.device) < samples.unsqueeze(1)
    return waveform * sounding.unsqueeze(1)


def _valid_rows(rows: Tensor, length: int) -> Tensor:
    """(B, length) bool, True below each clip's number of rows."""
    return torch.arange(length, device=rows.device) < rows.unsqueeze(1)


def _normalised(cells: Tensor, counted: Tensor) -> Tensor:
    """Each tile and channel of (B, T, C', R, R) by the mean and std of its counted rows (B, T, 1, R, 1); rest 0."""
    # relative to one of its cells a constant tile is exactly 0, whatever the rounding of its mean
    cells = (cells - cells[..., :1, :1]) * counted
    number = counted.sum(dim=(3, 4), keepdim=True).clamp(min=1) * cells.shape[-1]
    mean = cells.sum(dim=(3, 4), keepdim=True) / number
    centred = (cells - mean) * counted
    std = (centred.square().sum(dim=(3, 4), keepdim=True) / number).sqrt()
    return centred / (std + STD_FLOOR)
