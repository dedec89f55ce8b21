"""What the pipeline makes of a media file, as a flat record for people and tests."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip4vla.config import MediaLimits
from clip4vla.media.decode import LIMITS, MIN_SECONDS, check_found, decode_frames, decode_sound
from clip4vla.media.source import MediaError, Source, open_source

FULL_SCALE = 32_768


@dataclass(frozen=True)
class Inspection:
    """A file as the pipeline sees it, all of its sound decoded."""

    path: str
    reason: str | None
    """Why it can't be used; None where it can."""
    duration_s: float | None = None
    frames: int = 0
    """Frames that are kept of it."""
    audio_s: float = 0.0
    """Seconds up to the end of its sound, before it is cut to `clips.max_seconds`."""
    audio_rms: float | None = None
    """Root mean square of its samples in -1..1; None without sound."""
    channels: int = 0
    """1 or 2 after mixing down; 0 without sound."""
    notes: tuple[str, ...] = ()
    """The detail of the reason, or which tracks are used, turned or left out."""


def inspect(path: Path, *, frames: int, short_side: int, sample_rate: int, limits: MediaLimits = LIMITS) -> Inspection:
    """Decode a file from beginning to end, in bounded memory, and describe it; a reason in place of an error."""
    name = str(path).encode(errors="replace").decode()
    duration_s: float | None = None
    try:
        with open_source(path, limits) as source:
            duration_s = source.duration_s
            return _describe(name, source, frames, short_side, sample_rate)
    except MediaError as error:
        detail = error.detail.encode(errors="replace").decode()
        return Inspection(name, error.reason, duration_s, notes=(detail,))


def _describe(name: str, source: Source, count: int, short_side: int, sample_rate: int) -> Inspection:
    duration_s = source.duration_s
    if duration_s < MIN_SECONDS:
        raise MediaError("too_short", f"{source.path} has {duration_s:.3f} s")
    found = decode_sound(source, 0.0, round(duration_s * sample_rate), sample_rate, _Level)
    pictures, seen_s = decode_frames(source, 0.0, duration_s, count, short_side)
    check_found(source, 0.0, duration_s, found[2] if found else None, seen_s)
    notes = [*source.describe_tracks(), *source.notes]
    if (place := source.find_next_file()) is not None:
        notes.append(f"another file seems to begin at byte {place:,}: what follows isn't used")
    if found is None:
        return Inspection(name, None, duration_s, len(pictures), notes=tuple(notes))
    _, level, until_s = found
    return Inspection(
        name, None, duration_s, len(pictures), round(until_s, 3), level.rms(), level.channels, tuple(notes)
    )


class _Level:
    """The level of sound that isn't kept."""

    def __init__(self, channels: int) -> None:
        self.channels = channels
        self._squares = 0.0
        self._samples = 0

    def add(self, start: int, samples: NDArray[np.int16]) -> None:  # noqa: ARG002  # where doesn't matter
        """Count `samples` in."""
        self._squares += float(np.square(samples.astype(np.float64)).sum())
        self._samples += samples.size

    def rms(self) -> float:
        """Root mean square of all samples, of full scale."""
        return math.sqrt(self._squares / max(1, self._samples)) / FULL_SCALE
