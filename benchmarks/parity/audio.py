"""The front end in its published recipe: tiles, log-mel, statistics, SpecAugment and how many tiles there are.

Shapes: C channels (1 or 3; one stands for three equal ones), N tiles, R rows and bands of a tile, n samples.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from benchmarks.parity.deviation import EXACT, Deviation, Tolerance, deviation
from benchmarks.parity.reference import Arrays, Reference
from clip4vla.audio import frontend
from clip4vla.audio.augment import SpecMasks, draw_masks
from clip4vla.audio.frontend import LogMel, TilePosition, select_tiles, tile_samples
from clip4vla.model.published import PUBLISHED_AUDIO

SIZE = 224
"""Rows and bands of a published tile."""
TILES = {
    torch.float64: ("audio", Tolerance(5e-7, relative=7e-8)),  # beyond 7 the rounding to float32 is more
    torch.float32: ("audio_float32", Tolerance(1e-3)),
}
MEAN = Tolerance(2e-5)
DECIBEL = {torch.float64: ("audio_db", Tolerance(1e-5)), torch.float32: ("audio_db_float32", Tolerance(1e-2))}
STATISTICS = Tolerance(1e-4)
POSITIONS: tuple[TilePosition, ...] = ("head", "tail", "middle")
GROUPS = (
    "audio",
    "audio_float32",
    "audio_float32_mean",
    "audio_db",
    "audio_db_float32",
    "audio_statistics",
    "audio_counts",
)


def check(reference: Reference) -> Iterator[Deviation]:
    """Every clip, plain and under the masks that were drawn for it, in both precisions."""
    arrays = reference.audio
    facts = reference.facts.get("audio", {})
    places = [key.rpartition("/")[0] for key in arrays if "/" in key]
    for clip in sorted({place.removeprefix("specaug/") for place in places}):
        for dtype in (torch.float64, torch.float32):
            wave, samples = waveform(arrays[f"{clip}/wave"].to(dtype))
            yield from _plain(arrays, facts.get(clip, {}), clip, wave, samples)
            if f"specaug/{clip}" in places:
                yield from _augmented(arrays, clip, wave, samples)
    yield from _selections(facts)


def waveform(wave: Tensor) -> tuple[Tensor, Tensor]:
    """(1, channels, n) and its length (1,), from (n,) or (n, 2)."""
    return wave.reshape(len(wave), -1).T.unsqueeze(0), torch.tensor([len(wave)])


def front_end(samples: int) -> LogMel:
    """The published front end, with places for all tiles."""
    tiles = samples // tile_samples(PUBLISHED_AUDIO, SIZE) + 2
    return LogMel(PUBLISHED_AUDIO.model_copy(update={"tiles": tiles}), SIZE)


def _plain(arrays: Arrays, facts: Mapping[str, int], clip: str, wave: Tensor, samples: Tensor) -> Iterator[Deviation]:
    module = front_end(int(samples))
    log_mel, rows = module.log_mel(wave, samples)
    tiles, audio_mask = module(wave, samples)
    for key, count in {"spec_frames": rows[0], "model_frames": audio_mask.sum()}.items():
        if key in facts:
            yield deviation("audio_counts", f"{clip} {key}", count, torch.tensor(facts[key]), EXACT)
    yield from _tiles(arrays, clip, tiles[audio_mask])
    yield from _decibels(arrays, clip, log_mel[0, :, : int(rows)])
    yield from _statistics(arrays, clip, log_mel[0, :, : int(rows)])


def _augmented(arrays: Arrays, clip: str, wave: Tensor, samples: Tensor) -> Iterator[Deviation]:
    module, name = front_end(int(samples)), f"specaug/{clip}"
    stored = [arrays[f"{name}/{key}_masks"].long().unsqueeze(0) for key in ("time", "freq")]
    masks = SpecMasks(time=stored[0], frequency=stored[1])
    log_mel, rows = module.log_mel(wave, samples)
    drawn = draw_masks(PUBLISHED_AUDIO, rows, SIZE)
    numbers = [torch.tensor([one.time.shape[1], one.frequency.shape[1]]) for one in (drawn, masks)]
    yield deviation("audio_counts", f"{name} number of masks", numbers[0], numbers[1], EXACT)
    with mock.patch.object(frontend, "draw_masks", return_value=masks):  # the masks are drawn at random
        augmented, audio_mask = module.forward_augmented(wave, samples)
    yield from _tiles(arrays, name, augmented[audio_mask])
    covered = masks.covered(log_mel.shape[2], SIZE)
    yield from _statistics(arrays, name, log_mel.masked_fill(covered.unsqueeze(1), 0.0)[0, :, : int(rows)])


def _tiles(arrays: Arrays, name: str, tiles: Tensor) -> Iterator[Deviation]:
    """Tiles (N, 3, R, R), or every s-th row and band of them where the array is called `frames_s`."""
    group, tolerance = TILES[tiles.dtype]
    for key, step in _named(arrays, f"{name}/frames", "s"):
        ours, published = tiles[:, :, ::step, ::step], _three_channels(arrays[key])
        yield deviation(group, key, ours, published, tolerance)
        if tiles.dtype == torch.float32 and ours.shape == published.shape:
            mean = (ours - published).abs().mean()
            yield deviation("audio_float32_mean", f"mean of {key}", mean, torch.zeros(()), MEAN)


def _decibels(arrays: Arrays, clip: str, log_mel: Tensor) -> Iterator[Deviation]:
    """Log-mel (C, rows, R): its first and last three rows, or every t-th row."""
    group, tolerance = DECIBEL[log_mel.dtype]
    edges = f"{clip}/logmel_constant_edges"
    if edges in arrays:
        yield deviation(group, edges, torch.cat([log_mel[:, :3], log_mel[:, -3:]], dim=1), arrays[edges], tolerance)
    for key, step in _named(arrays, f"{clip}/logmel", "t"):
        yield deviation(group, key, log_mel[:, ::step], arrays[key].view(-1, *arrays[key].shape[-2:]), tolerance)


def _statistics(arrays: Arrays, name: str, log_mel: Tensor) -> Iterator[Deviation]:
    """Mean and deviation (N, C) of each tile of (C, rows, R) with its padding of 0 dB; in float64, as published."""
    if log_mel.dtype != torch.float64:
        return
    n_tiles = log_mel.shape[1] // SIZE + 1
    padded = F.pad(log_mel, (0, 0, 0, n_tiles * SIZE - log_mel.shape[1])).unflatten(1, (n_tiles, SIZE)).transpose(0, 1)
    found = {"mu": padded.mean(dim=(2, 3)), "sigma": padded.std(dim=(2, 3), correction=0)}
    for key, ours in found.items():
        if f"{name}/{key}" in arrays:
            published = _three_channels(arrays[f"{name}/{key}"])
            yield deviation("audio_statistics", f"{name}/{key}", _three_channels(ours), published, STATISTICS)


def _selections(facts: Mapping[str, Any]) -> Iterator[Deviation]:
    """Which tiles are kept when there are too many: cases CLIP|maxMOST|posPOSITION."""
    for case, published in facts.get("loader", {}).items():
        found = re.fullmatch(r"(.+)\|max(\d+)\|pos([012])", case)
        if found is None or "model_frames" not in facts.get(found[1], {}):
            continue
        most = int(found[2])
        kept = list(select_tiles(facts[found[1]]["model_frames"], most, POSITIONS[int(found[3])]))
        ours = torch.tensor(kept + [-1] * (most - len(kept)))
        yield deviation("audio_counts", f"tiles kept of {case}", ours, torch.tensor(published["frames"]), EXACT)


def _named(arrays: Arrays, name: str, step: str) -> Iterator[tuple[str, int]]:
    """Keys of the arrays called `name`, or `name_s4` where only every fourth is kept (`step` is s), with the 4."""
    for key in arrays:
        if found := re.fullmatch(rf"{re.escape(name)}(?:_{step}(\d+))?", key):
            yield key, int(found[1] or 1)


def _three_channels(values: Tensor) -> Tensor:
    """(N, 3, ...) from (N, 1 or 3, ...)."""
    return values.expand(-1, 3, *values.shape[2:]) if values.shape[1] == 1 else values
