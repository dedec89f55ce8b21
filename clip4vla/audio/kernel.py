"""The log-mel front end of a CPU, compiled by numba: sixteen rows of a spectrogram at a time, one in each lane.

In: waveforms in float32 and a `Plan`. Out: what `LogMel` computes with torch, to single precision. Sixteen rows go
from samples to decibels in the core's first two caches, and are written once; tiles are normalised in place when their
clip's loudest cell is known. `LogMel` uses it where numba is installed.

Shapes: B clips, C channels of the waveform and C' of its tiles, S samples, N' tiles that hold a clip's rows, T tiles
that are kept, R rows and bands of a tile, K points of a transform.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from clip4vla.audio.lanes import LANES, fill, larger, load, logarithm, store, transpose
from clip4vla.audio.mel import DYNAMIC_RANGE_DB, POWER_FLOOR, SILENCE_DB, STD_FLOOR

Floats = NDArray[np.float32]
LANES_REVISION = "05593b3fcda84c5f"
"""Of `lanes.py`, to be changed with it: numba compiles again what it keeps on the disk when this file changes."""
SILENCE = np.float32(SILENCE_DB)
LEAST_POWER = np.float32(POWER_FLOOR)
RANGE = np.float32(DYNAMIC_RANGE_DB)
DB_PER_NEPER = np.float32(10 / math.log(10))


class Plan(NamedTuple):
    """What the transform and the bands of a front end need."""

    hop: int
    rows: int
    """R."""
    window: Floats
    """(K,), halved: see `_power`."""
    cosines: Floats
    """(K,) of a turn's K-ths."""
    sines: Floats
    """(K,)."""
    order: NDArray[np.int64]
    """(K / 2,) where a transform leaves each frequency."""
    first_bin: NDArray[np.int64]
    """(R,) the first bin that a band hears."""
    first_weight: NDArray[np.int64]
    """(R + 1,) where each band's weights begin among all."""
    weights: Floats


def make_plan(window: NDArray[np.float64], filters: NDArray[np.float64], hop: int) -> Plan:
    """Of a window (K,), K a power of two, and a filterbank (K / 2 + 1, R)."""
    turns = 2 * np.pi * np.arange(len(window)) / len(window)
    heard = [np.flatnonzero(band) for band in filters.T]
    first = np.array([bins[0] if len(bins) else 0 for bins in heard], dtype=np.int64)
    counts = [bins[-1] + 1 - bins[0] if len(bins) else 0 for bins in heard]
    weights = [band[start : start + count] for band, start, count in zip(filters.T, first, counts, strict=True)]
    return Plan(
        hop=hop,
        rows=filters.shape[1],
        window=(window / 2).astype(np.float32),
        cosines=np.cos(turns).astype(np.float32),
        sines=np.sin(turns).astype(np.float32),
        order=_order(len(window) // 2),
        first_bin=first,
        first_weight=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        weights=np.concatenate(weights).astype(np.float32),
    )


def _order(points: int) -> NDArray[np.int64]:
    """Where passes of radix 4, and one of radix 2 if a factor is left, leave each of (points,) frequencies."""
    place, rest = np.zeros(points, dtype=np.int64), np.arange(points)
    while points > 1:
        radix = min(points, 4)
        points //= radix
        place += rest % radix * points
        rest //= radix
    return place


def _entry(function: Callable[..., Any]) -> Any:
    """Compile a function when it is first called, and keep the code on the disk where numba finds a place for it."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        return njit(function, cache=True, **options)
    except RuntimeError:  # no folder that it may write to
        return njit(function, **options)


@_entry
def log_mel(plan: Plan, waveforms: Floats, samples: NDArray[np.int64], out: Floats) -> None:
    """Write the log-mel in dB of (B, C, S) to `out` (B, N', C', R, R), floored 80 dB below its loudest."""
    size = plan.rows
    for clip in range(len(waveforms)):
        n_rows, least = _decibel(plan, waveforms[clip], samples[clip], 0, out[clip])
        for tile in range(out.shape[1]):
            for channel in range(out.shape[2]):
                cells = out[clip, tile, channel]
                cells[max(0, n_rows - tile * size) :] = SILENCE
                _raise(cells, least[channel])


@_entry
def tiles(
    plan: Plan,
    padding_counts: bool,
    waveforms: Floats,
    samples: NDArray[np.int64],
    first: NDArray[np.int64],
    kept: NDArray[np.int64],
    hidden_rows: NDArray[np.bool_],
    hidden_bands: NDArray[np.bool_],
    out: Floats,
    view: Floats,
) -> None:
    """Write the normalised tiles of (B, C, S) to `out` (B, T, C', R, R), and what SpecAugment leaves of them to `view`.

    Args:
        plan: of the front end.
        padding_counts: the published recipe, in which padding and hidden cells are 0 dB and part of the statistics;
            otherwise they are 0 after the normalisation.
        waveforms: in -1..1.
        samples: (B,), how many are sound.
        first: (B,), the first tile that is kept.
        kept: (B,), how many are; the others become 0.
        hidden_rows: (B, N' * R) for a view, (B, 0) without one.
        hidden_bands: (B, R), likewise.
        out: the tiles.
        view: as `out`; not written without a view.
    """
    size, has_view = plan.rows, hidden_rows.shape[1] > 0
    for clip in range(len(waveforms)):
        kept_out, kept_view = out[clip, : kept[clip]], view[clip, : kept[clip]]
        out[clip, kept[clip] :] = 0.0
        if has_view:
            view[clip, kept[clip] :] = 0.0
        n_rows, least = _decibel(plan, waveforms[clip], samples[clip], first[clip], kept_out)
        for place in range(kept[clip]):
            begin = (first[clip] + place) * size
            sound = max(0, min(size, n_rows - begin))
            for channel in range(out.shape[2]):
                cells, seen = kept_out[place, channel], kept_view[place, channel]
                _raise(cells[:sound], least[channel])
                if padding_counts:
                    cells[sound:] = 0.0
                    if has_view:
                        _hide(cells, hidden_rows[clip, begin : begin + size], hidden_bands[clip], seen)
                        _normalise(seen, size)
                    _normalise(cells, size)
                else:
                    _normalise(cells, sound)
                    if has_view:
                        _hide(cells, hidden_rows[clip, begin : begin + size], hidden_bands[clip], seen)


@njit(error_model="numpy")
def _raise(cells: Floats, least: float) -> None:
    """Raise what is below `least` to it."""
    for row in range(len(cells)):
        for band in range(cells.shape[1]):
            if cells[row, band] < least:
                cells[row, band] = least


@njit(error_model="numpy")
def _hide(cells: Floats, rows: NDArray[np.bool_], bands: NDArray[np.bool_], out: Floats) -> None:
    """Copy (R, R) to `out`, with 0 in the rows (R,) and bands (R,) that are hidden."""
    for row in range(len(cells)):
        if rows[row]:
            out[row] = 0.0
        else:
            for band in range(len(cells)):
                out[row, band] = np.float32(0.0) if bands[band] else cells[row, band]


@njit(error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
def _normalise(cells: Floats, n_rows: int) -> None:
    """Normalise the first rows of (R, R) by their mean and std, and set the others to 0."""
    # relative to one of its cells a constant tile is exactly 0, whatever the rounding of its mean;
    # rows are added up in single precision, tiles in double
    origin, size = cells[0, 0], len(cells)
    number = max(1, n_rows * size)
    total = 0.0
    for row in range(n_rows):
        part = np.float32(0.0)
        for band in range(size):
            part += cells[row, band] - origin
        total += float(part)
    mean = np.float32(total / number)
    total = 0.0
    for row in range(n_rows):
        part = np.float32(0.0)
        for band in range(size):
            part += ((cells[row, band] - origin) - mean) ** 2
        total += float(part)
    factor = np.float32(1 / (math.sqrt(total / number) + STD_FLOOR))
    for row in range(n_rows):
        for band in range(size):
            cells[row, band] = ((cells[row, band] - origin) - mean) * factor
    cells[n_rows:] = 0.0


@njit(error_model="numpy")
def _decibel(plan: Plan, waveform: Floats, samples: int, first: int, out: Floats) -> tuple[int, Floats]:
    """Write those rows of the log-mel in dB of (C, S) that are sound to `out` (T, C', R, R), from tile `first` on.

    Returns:
        How many rows of the clip are sound, and (C',) the floor of each channel, 80 dB below its loudest cell.
    """
    n_tiles, n_channels, size, _ = out.shape
    samples = min(samples, waveform.shape[1])
    n_rows = 1 + samples // plan.hop if samples > 0 else 0
    points = len(plan.window) // 2
    span = _scratch(1, (LANES - 1) * plan.hop + 2 * points)[0]
    spectra = _scratch(len(waveform) * 2, points * LANES).reshape((len(waveform), 2, points * LANES))
    frames = _scratch(1, len(plan.window) * LANES)[0]
    power = _scratch(n_channels, (points + 1) * LANES)
    by_band, by_row = _scratch(1, _whole(size) * LANES)[0], _scratch(LANES, _whole(size))
    loudest, most = np.full(n_channels, SILENCE), np.empty(LANES, dtype=np.float32)
    for start in range(0, n_rows, LANES):
        for channel in range(len(waveform)):
            _cut(waveform[channel, :samples], start * plan.hop - points, span)
            _spectrum(plan, span, frames, spectra[channel])
        _power(plan, spectra, power)
        for channel in range(n_channels):
            _bands(plan, power[channel], by_band, by_row, most)
            for lane in range(min(LANES, n_rows - start)):
                loudest[channel] = max(loudest[channel], most[lane])
                tile, row = divmod(start + lane, size)
                if first <= tile < first + n_tiles:
                    _copy(by_row[lane, :size], out[tile - first, channel, row])
    return n_rows, loudest - RANGE


@njit(error_model="numpy")
def _copy(values: Floats, out: Floats) -> None:
    """As `out[:] = values`, for which numba's code is several times slower."""
    for index in range(len(out)):
        out[index] = values[index]


@njit(error_model="numpy")
def _cut(samples: Floats, start: int, out: Floats) -> None:
    """Copy the samples from `start` on, which may be negative, to `out`, with zeros where there are none."""
    begin = min(len(out), max(0, -start))
    end = max(begin, min(len(out), len(samples) - start))
    out[:begin] = 0.0
    _copy(samples[start + begin : start + end], out[begin:end])
    out[end:] = 0.0


@njit(error_model="numpy")
def _spectrum(plan: Plan, span: Floats, frames: Floats, spectrum: Floats) -> None:
    """Write the transforms of sixteen frames to `spectrum` (2, K / 2 * 16): real and imaginary parts, lane by lane.

    The frames are a hop apart in `span`; `frames` (K * 16) is scratch. The K real samples of each are taken for K / 2
    complex numbers, so this isn't the frames' spectrum yet, see `_power`. All passes but the first work in place, in
    the core's first cache, which leaves the frequencies in `plan.order`.
    """
    for sample in range(0, len(plan.window), LANES):
        transpose(span, sample, plan.hop, frames, sample * LANES, LANES)
    _first_pass(plan, frames, spectrum)
    length = len(plan.window) // 8
    while length >= 4:
        _pass(plan, spectrum, length)
        length //= 4
    if length == 2:
        _last_pass(spectrum)


@njit(error_model="numpy")
def _first_pass(plan: Plan, frames: Floats, spectrum: Floats) -> None:
    """The first pass of radix 4, which weights the frames with the window."""
    quarter = len(plan.window) // 8
    for point in range(quarter):
        a, e = _windowed(plan, frames, point)
        b, f = _windowed(plan, frames, point + quarter)
        c, g = _windowed(plan, frames, point + 2 * quarter)
        d, h = _windowed(plan, frames, point + 3 * quarter)
        _butterfly(plan, (a, b, c, d), (e, f, g, h), 2 * point, spectrum, point * LANES, quarter * LANES)


@njit(error_model="numpy", forceinline=True)
def _windowed(plan: Plan, frames: Floats, point: int) -> Any:
    """An even and the next odd sample of sixteen frames, times the window."""
    even, odd = 2 * point, 2 * point + 1
    return load(frames, even * LANES) * plan.window[even], load(frames, odd * LANES) * plan.window[odd]


@njit(error_model="numpy")
def _pass(plan: Plan, spectrum: Floats, length: int) -> None:
    """A pass of radix 4 over transforms of `length` complex numbers each, one after the other."""
    step, turn = length // 4 * LANES, len(plan.window) // length
    for point in range(length // 4):
        for place in range(point * LANES, spectrum.shape[1], length * LANES):
            real, imaginary = _quarters(spectrum[0], place, step), _quarters(spectrum[1], place, step)
            _butterfly(plan, real, imaginary, turn * point, spectrum, place, step)


@njit(error_model="numpy")
def _last_pass(spectrum: Floats) -> None:
    """The pass of radix 2 where transforms of two numbers are left."""
    for part in range(2):
        for place in range(0, spectrum.shape[1], 2 * LANES):
            a, b = load(spectrum[part], place), load(spectrum[part], place + LANES)
            store(spectrum[part], place, a + b)
            store(spectrum[part], place + LANES, a - b)


@njit(error_model="numpy", forceinline=True)
def _quarters(values: Floats, place: int, step: int) -> Any:
    """What is at `place` and one, two and three steps on."""
    return (
        load(values, place),
        load(values, place + step),
        load(values, place + 2 * step),
        load(values, place + 3 * step),
    )


@njit(error_model="numpy", forceinline=True)
def _butterfly(plan: Plan, real: Any, imaginary: Any, turn: int, target: Floats, place: int, step: int) -> None:
    """Write the transform of four complex numbers to `target`, from `place` on, a step apart.

    They are turned back by 0, 1, 2 and 3 times `turn` K-ths of a turn.
    """
    a, b, c, d = real
    e, f, g, h = imaginary
    even, even_i, difference, difference_i = a + c, e + g, a - c, e - g
    odd, odd_i, turned, turned_i = b + d, f + h, f - h, d - b
    _turn(plan, even + odd, even_i + odd_i, 0, target, place)
    _turn(plan, difference + turned, difference_i + turned_i, turn, target, place + step)
    _turn(plan, even - odd, even_i - odd_i, 2 * turn, target, place + 2 * step)
    _turn(plan, difference - turned, difference_i - turned_i, 3 * turn, target, place + 3 * step)


@njit(error_model="numpy", forceinline=True)
def _turn(plan: Plan, real: Any, imaginary: Any, turn: int, target: Floats, place: int) -> None:
    """Write a complex number to `target` at `place`, turned back by `turn` K-ths of a turn."""
    if turn == 0:
        store(target[0], place, real)
        store(target[1], place, imaginary)
    else:
        cos, sin = plan.cosines[turn], plan.sines[turn]
        store(target[0], place, real * cos + imaginary * sin)
        store(target[1], place, imaginary * cos - real * sin)


@njit(error_model="numpy")
def _radix_2(source: Floats, target: Floats, stride: int) -> None:
    """The last pass where two numbers are left."""
    for part in range(2):
        for place in range(0, stride, LANES):
            a, b = load(source[part], place), load(source[part], place + stride)
            store(target[part], place, a + b)
            store(target[part], place + stride, a - b)


@njit(error_model="numpy")
def _power(plan: Plan, spectra: Floats, power: Floats) -> None:
    """Write the power of left, mean and right, or of the only channel, to `power` (C', (K / 2 + 1) * 16).

    The transform z of even + i * odd samples gives the spectrum of all of them: with e = (z[k] + z*[-k]) / 2,
    o = (z[k] - z*[-k]) / 2i and w = exp(-2 pi i k / K) it is e + w * o at k, and at K / 2 - k the conjugate of
    e - w * o. The window is halved in place of e and o.
    """
    points = len(plan.window) // 2
    for bin_ in range(points // 2 + 1):
        here, there = bin_ * LANES, (points - bin_) * LANES
        place, mirrored = plan.order[bin_] * LANES, plan.order[(points - bin_) % points] * LANES
        cos, sin = plan.cosines[bin_], plan.sines[bin_]
        a, b, c, d = _split(spectra[0], place, mirrored, cos, sin)
        store(power[0], here, a * a + b * b)
        store(power[0], there, c * c + d * d)
        if len(spectra) == 2:
            e, f, g, h = _split(spectra[1], place, mirrored, cos, sin)
            store(power[2], here, e * e + f * f)
            store(power[2], there, g * g + h * h)
            a, b, c, d = a + e, b + f, c + g, d + h
            store(power[1], here, (a * a + b * b) * np.float32(0.25))
            store(power[1], there, (c * c + d * d) * np.float32(0.25))


@njit(error_model="numpy", forceinline=True)
def _split(spectrum: Floats, place: int, mirrored: int, cos: float, sin: float) -> Any:
    """Real and imaginary parts of e + w * o and of e - w * o, for `_power`."""
    x, y = load(spectrum[0], place), load(spectrum[1], place)
    u, v = load(spectrum[0], mirrored), load(spectrum[1], mirrored)
    even, even_i, odd, odd_i = x + u, y - v, y + v, u - x
    turned, turned_i = odd * cos + odd_i * sin, odd_i * cos - odd * sin
    return even + turned, even_i + turned_i, even - turned, even_i - turned_i


@njit(error_model="numpy")
def _bands(plan: Plan, power: Floats, by_band: Floats, by_row: Floats, most: Floats) -> None:
    """Write the decibels of sixteen rows to `by_row` (16, R), and the loudest of each to `most` (16,).

    R goes to whole lanes; `by_band` is scratch.
    """
    loudest = fill(SILENCE)
    for band in range(plan.rows):
        begin, end = plan.first_weight[band], plan.first_weight[band + 1]
        place = plan.first_bin[band] * LANES
        total = fill(np.float32(0.0))
        for index in range(begin, end):
            total = total + load(power, place) * plan.weights[index]
            place += LANES
        decibel = logarithm(larger(total, fill(LEAST_POWER))) * DB_PER_NEPER
        store(by_band, band * LANES, decibel)
        loudest = larger(loudest, decibel)
    store(most, 0, loudest)
    for band in range(0, _whole(plan.rows), LANES):
        transpose(by_band, band * LANES, LANES, by_row.reshape(-1), band, by_row.shape[1])


@njit(error_model="numpy")
def _whole(number: int) -> int:
    """Up to whole lanes."""
    return (number + LANES - 1) // LANES * LANES


@njit(error_model="numpy")
def _scratch(rows: int, size: int) -> Floats:
    """(rows, size) uninitialised floats, size of whole lanes, that begin with a line of the cache."""
    memory = np.empty(rows * size + LANES, dtype=np.float32)
    skipped = (-memory.ctypes.data) % (4 * LANES) // 4
    return memory[skipped : skipped + rows * size].reshape((rows, size))
