"""The compiled front end on tensors: `LogMel` hands a batch over, and as many threads as torch has take its clips.

In and out: tensors on a CPU, in single precision. The threads wait for nothing and spin for nothing, so that other work
on the machine slows them down by its share only.

Shapes: B clips, C channels of the waveform and C' of its tiles, S samples, N' tiles that hold a clip's rows, T tiles
that are kept, R rows and bands of a tile.
"""

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip4vla.audio import kernel
from clip4vla.audio.augment import SpecMasks


class CompiledLogMel:
    """What the kernel knows of a front end with a window (K,), filters (K / 2 + 1, R) and a hop in samples."""

    def __init__(self, window: Tensor, filters: Tensor, hop: int) -> None:
        self._plan = kernel.make_plan(window.cpu().numpy(), filters.cpu().numpy(), hop)

    def log_mel(self, waveform: Tensor, samples: Tensor, n_tiles: int) -> Tensor:
        """(B, N', C', R, R) in dB of `waveform` (B, C, S), of which `samples` (B,) are sound."""
        out = self._empty_tiles(waveform, n_tiles)
        arrays = [*_arrays(waveform.float(), samples), out]
        _share_out(len(waveform), lambda part: kernel.log_mel(self._plan, *(array[part] for array in arrays)))
        return torch.from_numpy(out)

    def views(
        self,
        waveform: Tensor,
        samples: Tensor,
        masks: SpecMasks | None,
        places: Tensor,
        audio_mask: Tensor,
        n_tiles: int,
        padding_counts: bool,
    ) -> tuple[Tensor, Tensor]:
        """The normalised tiles (B, T, C', R, R), and with masks the view of them; without, the same.

        Args:
            waveform: (B, C, S).
            samples: (B,), how many are sound.
            masks: what SpecAugment hides.
            places: (B, T), which tile of a clip stands at each place, one after the other.
            audio_mask: (B, T), whether there is one.
            n_tiles: N'.
            padding_counts: the published recipe, in which padding and hidden cells are 0 dB and part of the statistics.
        """
        tiles = self._empty_tiles(waveform, places.shape[1])
        rows, view = self._plan.rows, tiles
        hidden_rows = hidden_bands = torch.empty(len(waveform), 0, dtype=torch.bool)
        if masks is not None:
            hidden_rows, hidden_bands = masks.covered_rows(n_tiles * rows), masks.covered_bands(rows)
            view = self._empty_tiles(waveform, places.shape[1])
        given = (waveform.float(), samples, places[:, 0], audio_mask.sum(1), hidden_rows, hidden_bands)
        arrays = [*_arrays(*given), tiles, view]
        _share_out(
            len(waveform),
            lambda part: kernel.tiles(self._plan, padding_counts, *(array[part] for array in arrays)),
        )
        return torch.from_numpy(tiles), torch.from_numpy(view)

    def _empty_tiles(self, waveform: Tensor, number: int) -> kernel.Floats:
        """(B, number, C', R, R), beginning with a line of the cache.

        NumPy asks Linux for large pages, torch doesn't: being given memory in pages of 4 kB takes half as long as
        computing what goes there.
        """
        shape = (len(waveform), number, 1 if waveform.shape[1] == 1 else 3, self._plan.rows, self._plan.rows)
        size, line = math.prod(shape), 64
        memory = np.empty(size + line // 4, dtype=np.float32)
        skipped = -memory.ctypes.data % line // 4
        return memory[skipped : skipped + size].reshape(shape)


def _arrays(*tensors: Tensor) -> list[NDArray[Any]]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _share_out(number: int, work: Callable[[slice], None]) -> None:
    """Have `work` done on 0..number, by as many threads as torch has."""
    threads = min(torch.get_num_threads(), number)
    if threads < 2:
        work(slice(0, number))
        return
    bounds = [number * thread // threads for thread in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        for done in [pool.submit(work, slice(*part)) for part in pairwise(bounds)]:
            done.result()
