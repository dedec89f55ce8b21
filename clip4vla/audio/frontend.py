"""The log-mel front end: waveforms become square "images" that a CLIP image tower can read.

In: a batch's waveforms and how many of their samples are sound. Out: normalised tiles of R rows (time) by R mel
bands with three channels (left, mean, right), and which of them exist. It runs on the waveform's device, because
storing waveforms rather than spectrograms lets the front end change without cutting any clip again. On a GPU the batch
goes at once. On a CPU a clip goes all the way before the next: in single precision by a kernel (`compiled`) where numba
is installed, and by torch, in pieces that the core's cache holds, elsewhere.

Source: Ruan et al., arXiv 2303.06591, and the code published with it; `AudioConfig.recipe` says where we differ.

Shapes: B clips, C channels of the waveform and C' of its tiles, S samples, N rows of a whole spectrogram, N' tiles
that hold them, T tiles that are kept, R rows and bands of a tile.
"""

from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clip4vla.audio.augment import SpecMasks, draw_masks
from clip4vla.audio.mel import DYNAMIC_RANGE_DB, POWER_FLOOR, STD_FLOOR, MelBands, mel_filters
from clip4vla.audio.precision import KeepsPrecision
from clip4vla.config import AudioConfig

if TYPE_CHECKING:
    from clip4vla.audio.compiled import CompiledLogMel

TILE_SECONDS = 1.792
"""What a published tile lasts: 224 rows of 128 samples at 16 kHz."""
CACHE_BYTES = 2 << 20
"""Of a core's own cache and its share of the common one, about: smaller pieces cost more calls than they save."""
TilePosition = Literal["head", "tail", "middle"]
Rows = TypeVar("Rows", int, Tensor)


def hop_samples(config: AudioConfig, image_size: int) -> int:
    """Samples between two rows; derived so that a tile lasts as long as the published one unless it is given."""
    return config.hop or round(TILE_SECONDS * config.sample_rate / image_size)


def tile_samples(config: AudioConfig, image_size: int) -> int:
    """Samples that one tile spans."""
    return hop_samples(config, image_size) * image_size


def max_samples(config: AudioConfig, image_size: int) -> int:
    """The most samples that still fit `config.tiles` tiles; longer sounds are cropped to it."""
    return config.tiles * tile_samples(config, image_size) - 1


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
        config: the front end's section.
        image_size: R, the image size of the tower that reads the tiles.
    """

    window: Tensor
    mel_filters: Tensor

    def __init__(self, config: AudioConfig, image_size: int) -> None:
        super().__init__()
        self.config = config
        self.rows = image_size
        self.hop = hop_samples(config, image_size)
        filters = mel_filters(image_size, config.n_fft, config.sample_rate)
        self.mel_bands = MelBands(filters)
        self.register_buffer("mel_filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(config.n_fft, dtype=torch.float64), persistent=False)

    def forward(self, waveform: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Tiles of `waveform` (B, C, S) float in -1..1, of which `samples` (B,) int64 are sound.

        Returns:
            tiles (B, T, 3, R, R), channel, row, band; exactly 0 where there is none,
            and audio_mask (B, T) bool. T is always `config.tiles`.

        Raises:
            ValueError: the waveform has neither one nor two channels.
        """
        tiles, _, audio_mask = self._views(waveform, samples, masks=None)
        return tiles, audio_mask

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
        return self._views(waveform, samples, draw_masks(self.config, self._count_rows(samples), self.rows, generator))

    @torch.no_grad()
    def log_mel(self, waveform: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Log-mel power in dB, floored 80 dB below the loudest cell of its clip and channel.

        Returns:
            log_mel (B, C', N, R) with C' 1 for mono and 3 for stereo (left, mean, right), and rows (B,) int64:
            1 + samples // hop are valid, none where there are no samples.

        Raises:
            ValueError: the waveform has neither one nor two channels.
        """
        _check_shape(waveform)
        samples = samples.clamp(max=waveform.shape[2])
        rows = self._count_rows(samples)
        compiled = self._compiled_for(waveform)
        if compiled is None:
            cells = torch.cat([self._decibel(waveform[part], samples[part]) for part in self._blocks(waveform)])
        else:
            cells = compiled.log_mel(waveform, samples, self._count_tiles(waveform))
        return cells.transpose(1, 2).flatten(2, 3)[:, :, : 1 + waveform.shape[2] // self.hop], rows

    @torch.no_grad()
    def _views(self, waveform: Tensor, samples: Tensor, masks: SpecMasks | None) -> tuple[Tensor, Tensor, Tensor]:
        """What `forward_views` gives; without masks the second is the first."""
        _check_shape(waveform)
        samples = samples.clamp(max=waveform.shape[2])
        places, audio_mask = self._places(self._count_rows(samples))
        compiled = self._compiled_for(waveform)
        if compiled is None:
            tiles, views = self._compute_views(waveform, samples, masks, places, audio_mask)
        else:
            n_tiles, padding_counts = self._count_tiles(waveform), self.config.recipe == "published"
            tiles, views = compiled.views(waveform, samples, masks, places, audio_mask, n_tiles, padding_counts)
        return tiles.expand(-1, -1, 3, -1, -1), views.expand(-1, -1, 3, -1, -1), audio_mask

    def _compute_views(
        self, waveform: Tensor, samples: Tensor, masks: SpecMasks | None, places: Tensor, audio_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The tiles at `places` (B, T), and with masks the view of them, (B, T, C', R, R) each; without, the same."""
        channels = 1 if waveform.shape[1] == 1 else 3
        shape = (len(waveform), self.config.tiles, channels, self.rows, self.rows)
        tiles = waveform.new_empty(shape, dtype=_real(waveform))
        views = tiles if masks is None else torch.empty_like(tiles)
        covered = None if masks is None else self._covered(masks, waveform)
        for part in self._blocks(waveform):
            cells, valid = self._decibel(waveform[part], samples[part]), self._valid(waveform[part], samples[part])
            self._tile(cells, valid, places[part], audio_mask[part], out=tiles[part])
            if covered is None:
                continue
            if self.config.recipe == "published":
                cells.masked_fill_(covered[part], 0.0)
                self._tile(cells, valid, places[part], audio_mask[part], out=views[part])
            else:
                # a normalised tile's mean is 0, which is what the masks are to be filled with
                torch.mul(tiles[part], ~_chosen(covered[part], places[part]), out=views[part])
        return tiles, views

    def _compiled_for(self, waveform: Tensor) -> "CompiledLogMel | None":
        """The kernel for a waveform, where there is one: on a CPU, in single precision."""
        return self._compiled if waveform.device.type == "cpu" and _real(waveform) == torch.float32 else None

    @cached_property
    def _compiled(self) -> "CompiledLogMel | None":
        """The kernel, where numba is installed and the transform's length is a power of two."""
        if self.config.n_fft & (self.config.n_fft - 1) or find_spec("numba") is None:
            return None
        from clip4vla.audio.compiled import CompiledLogMel

        return CompiledLogMel(self.window, self.mel_filters, self.hop)

    def _count_rows(self, samples: Tensor) -> Tensor:
        """(B,) int64: how many rows of each clip are sound."""
        return torch.where(samples > 0, 1 + samples // self.hop, 0)

    def _count_tiles(self, waveform: Tensor) -> int:
        """N', as many tiles as the recipe makes of all samples of a waveform."""
        return self._tiles_of(1 + waveform.shape[2] // self.hop)

    def _tiles_of(self, rows: Rows) -> Rows:
        """How many tiles the recipe makes of rows; published, an exact multiple is padded by one whole tile."""
        return rows // self.rows + 1 if self.config.recipe == "published" else -(-rows // self.rows)

    def _places(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Which tile of a clip stands at each of the T places: indices and audio_mask, both (B, T).

        A clip with more than T tiles keeps its middle.
        """
        counts = torch.where(rows > 0, self._tiles_of(rows), 0)
        kept = counts.clamp(max=self.config.tiles).unsqueeze(1)
        place = torch.arange(self.config.tiles, device=counts.device)
        return place + (counts.unsqueeze(1) - kept) // 2, place < kept

    def _valid(self, waveform: Tensor, samples: Tensor) -> Tensor:
        """(B, N', 1, R, 1) bool: which rows are sound."""
        n_tiles = self._count_tiles(waveform)
        valid = torch.arange(n_tiles * self.rows, device=samples.device) < self._count_rows(samples).unsqueeze(1)
        return valid.view(-1, n_tiles, 1, self.rows, 1)

    def _covered(self, masks: SpecMasks, waveform: Tensor) -> Tensor:
        """(B, N', 1, R, R) bool: which cells lie under a mask."""
        n_tiles = self._count_tiles(waveform)
        return masks.covered(n_tiles * self.rows, self.rows).view(-1, n_tiles, 1, self.rows, self.rows)

    def _blocks(self, waveform: Tensor) -> list[slice]:
        """The clips of a batch that go at once."""
        return _pieces(waveform, len(waveform), self._spectrum_bytes(waveform) * self._count_tiles(waveform))

    def _spectrum_bytes(self, waveform: Tensor) -> int:
        """What the spectrum of one tile takes."""
        return waveform.shape[1] * self.rows * (self.config.n_fft // 2 + 1) * 2 * _real(waveform).itemsize

    def _decibel(self, waveform: Tensor, samples: Tensor) -> Tensor:
        """(B, N', C', R, R) in dB, -100 beyond the last row that is sound."""
        with torch.autocast(waveform.device.type, enabled=False):
            cells = self._mel(_silenced_after(waveform, samples))
        cells.mul_(self._valid(waveform, samples)).clamp_(min=POWER_FLOOR).log10_().mul_(10)
        loudest = cells.amax(dim=(1, 3, 4), keepdim=True)
        return torch.maximum(cells, loudest - DYNAMIC_RANGE_DB, out=cells)

    def _mel(self, waveform: Tensor) -> Tensor:
        """Mel power (B, N', C', R, R) of frames centred on their rows, padded with zeros."""
        n_tiles, n_fft = self._count_tiles(waveform), self.config.n_fft
        before = n_fft // 2
        after = (n_tiles * self.rows - 1) * self.hop + n_fft - before - waveform.shape[2]
        frames = F.pad(waveform, (before, after)).unfold(2, n_fft, self.hop).unflatten(2, (n_tiles, self.rows))
        frames = frames.transpose(1, 2)
        window, filters = self.window.to(waveform.dtype), self.mel_filters.to(waveform.dtype)
        channels = 1 if waveform.shape[1] == 1 else 3
        mel = waveform.new_empty(len(waveform), n_tiles, channels, self.rows, self.rows)
        for part in _pieces(waveform, n_tiles, self._spectrum_bytes(waveform) * len(waveform)):
            power = _power(torch.fft.rfft(frames[:, part] * window))
            self.mel_bands(power.flatten(0, 3), filters, out=mel[:, part].view(-1, self.rows))
        return mel

    def _tile(self, cells: Tensor, valid: Tensor, places: Tensor, audio_mask: Tensor, out: Tensor) -> None:
        """Write the normalised tiles at `places` (B, T) of `cells` (B, N', C', R, R) in dB to `out`."""
        cells, counted = _chosen(cells, places), _chosen(valid, places)
        if self.config.recipe == "published":
            # padding is loud and counts
            cells, counted = cells.masked_fill(~counted, 0.0), torch.ones_like(counted)
        _normalise(cells, counted, audio_mask, out)


def _check_shape(waveform: Tensor) -> None:
    if waveform.ndim != 3 or waveform.shape[1] not in (1, 2):
        raise ValueError(f"a waveform is (B, 1 or 2, S), not {tuple(waveform.shape)}")


def _real(waveform: Tensor) -> torch.dtype:
    """The number format of the computation: at least float32."""
    return torch.float64 if waveform.dtype == torch.float64 else torch.float32


def _silenced_after(waveform: Tensor, samples: Tensor) -> Tensor:
    """The waveform, exactly 0 after each clip's end."""
    sounding = torch.arange(waveform.shape[2], device=waveform.device) < samples.unsqueeze(1)
    return waveform.to(_real(waveform)) * sounding.unsqueeze(1)


def _pieces(waveform: Tensor, number: int, bytes_of_each: int) -> list[slice]:
    """0..number in runs: one on a GPU; on a CPU, runs of as many as its cache holds."""
    most = max(1, number if waveform.device.type != "cpu" else CACHE_BYTES // max(1, bytes_of_each))
    return [slice(start, start + most) for start in range(0, number, most)]


def _power(spectrum: Tensor) -> Tensor:
    """Power (B, N', C', R, K) of the spectra (B, N', C, R, K) of left, mean and right, or of the only channel.

    It is computed in the memory of the spectra.
    """
    if spectrum.shape[2] == 1:
        channels = [spectrum[:, :, 0]]
    else:
        left, right = spectrum.unbind(2)
        channels = [left, (left + right).mul_(0.5), right]
    shape = list(spectrum.shape)
    shape[2] = len(channels)
    power = spectrum.new_empty(shape, dtype=spectrum.real.dtype)
    for channel, values in enumerate(channels):
        real, imaginary = torch.view_as_real(values).square_().unbind(-1)
        torch.add(real, imaginary, out=power[:, :, channel])
    return power


def _chosen(tiles: Tensor, places: Tensor) -> Tensor:
    """The tiles (B, T, ...) at `places` (B, T) of (B, N', ...); anything where there is no tile."""
    n_tiles, n_places = tiles.shape[1], places.shape[1]
    if n_tiles <= n_places:  # then every tile is at its own place
        return tiles if n_tiles == n_places else F.pad(tiles, (0, 0) * (tiles.ndim - 2) + (0, n_places - n_tiles))
    clips = torch.arange(len(places), device=places.device).unsqueeze(1)
    return tiles[clips, places.clamp(max=n_tiles - 1)]


def _normalise(cells: Tensor, counted: Tensor, audio_mask: Tensor, out: Tensor) -> None:
    """Each tile and channel of (B, T, C', R, R) by the mean and std of its counted rows (B, T, 1, R, 1); rest 0."""
    counted = (counted & audio_mask[:, :, None, None, None]).to(cells.dtype)
    number = counted.sum(dim=(3, 4), keepdim=True).clamp_(min=1) * cells.shape[-1]
    # relative to one of its cells a constant tile is exactly 0, whatever the rounding of its mean
    torch.sub(cells, cells[..., :1, :1], out=out).mul_(counted)
    out.sub_(out.sum(dim=(3, 4), keepdim=True) / number).mul_(counted)
    # not a norm, whose sum of so many squares is less exact
    std = (out.square().sum(dim=(3, 4), keepdim=True) / number).sqrt_()
    out.div_(std + STD_FLOOR)
