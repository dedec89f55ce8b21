"""A span of a media file in, evenly spread RGB frames and 16-bit sound out.

What can't be used is a `MediaError` with a short reason (it becomes a row of the rejects table) and the detail.
"""

from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from numpy.typing import NDArray
from PIL import Image

SEEK_MARGIN_S = 0.25
MIN_SECONDS = 0.1


class MediaError(Exception):
    """A file that can't be used. `reason` is one of a few words, `detail` says what happened."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Span:
    """What a span of a media file holds."""

    frames: tuple[Image.Image, ...]
    """RGB, upright, in order of time; empty when there is no video stream."""
    audio: NDArray[np.int16] | None
    """(C, S) with C 1 or 2; None when there is no audio stream."""


def decode(
    path: Path, start_s: float, end_s: float | None, *, frames: int, short_side: int, sample_rate: int
) -> Span:
    """Decode `frames` evenly spread frames and the sound of `start_s`..`end_s` (None: the end of the file).

    A frame is the one on screen at the middle of its share of the span, by timestamps, so that variable frame
    rates come out right; its shorter side becomes `short_side` pixels. Sound is resampled to `sample_rate`; mono
    stays mono, more than two channels are mixed down to stereo.

    Raises:
        MediaError: `missing`, `corrupt`, `no_streams`, or `too_short` (under a tenth of a second in the span).
    """
    if not path.is_file():
        raise MediaError("missing", f"no file {path}")
    try:
        with av.open(str(path)) as container:
            if not container.streams.video and not container.streams.audio:
                raise MediaError("no_streams", f"{path} has neither video nor audio")
            end_s = _end_within_file(container, end_s)
            if end_s - start_s < MIN_SECONDS:
                raise MediaError("too_short", f"{path} has {end_s - start_s:.3f} s from {start_s} s on")
            audio = _decode_audio(container, start_s, end_s, sample_rate) if container.streams.audio else None
            pictures = _decode_frames(container, start_s, end_s, frames) if container.streams.video else ()
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError("corrupt", f"{path}: {error}") from error
    return Span(tuple(_upright(picture, short_side) for picture in pictures), audio)


def _end_within_file(container: InputContainer, end_s: float | None) -> float:
    duration_s = container.duration / av.time_base if container.duration else _last_timestamp(container)
    return duration_s if end_s is None else min(end_s, duration_s)


def _last_timestamp(container: InputContainer) -> float:
    """Seconds to the end of the last packet, for containers that don't state their duration (a live webm)."""
    ends = [
        float((packet.pts + (packet.duration or 0)) * packet.time_base)
        for packet in container.demux()
        if packet.pts is not None
    ]
    container.seek(0)
    return max(ends, default=0.0)


def _seek(container: InputContainer, start_s: float) -> None:
    container.seek(int(max(0.0, start_s - SEEK_MARGIN_S) * av.time_base))


def _decode_frames(container: InputContainer, start_s: float, end_s: float, count: int) -> list[av.VideoFrame]:
    targets_s = [start_s + (i + 0.5) * (end_s - start_s) / count for i in range(count)]
    picked: list[av.VideoFrame] = []
    shown: av.VideoFrame | None = None
    _seek(container, start_s)
    for frame in container.decode(video=0):
        while shown is not None and len(picked) < count and frame.time > targets_s[len(picked)]:
            picked.append(shown)
        shown = frame
        if len(picked) == count:
            return picked
    if shown is None:
        raise MediaError("corrupt", f"no frame could be decoded between {start_s} and {end_s} s")
    return picked + [shown] * (count - len(picked))


def _upright(frame: av.VideoFrame, short_side: int) -> Image.Image:
    scale = short_side / min(frame.width, frame.height)
    size = (max(short_side, round(frame.width * scale)), max(short_side, round(frame.height * scale)))
    picture = frame.reformat(*size, format="rgb24", interpolation="AREA").to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def _decode_audio(
    container: InputContainer, start_s: float, end_s: float, sample_rate: int
) -> NDArray[np.int16]:
    stream = container.streams.audio[0]
    channels = 1 if stream.codec_context.channels == 1 else 2
    resampler = AudioResampler(format="s16p", layout="mono" if channels == 1 else "stereo", rate=sample_rate)
    sound = np.zeros((channels, round((end_s - start_s) * sample_rate)), np.int16)
    _seek(container, start_s)
    position: int | None = None
    for frame in container.decode(audio=0):
        if position is None:
            position = round(((frame.time or 0.0) - start_s) * sample_rate)
        for piece in resampler.resample(frame):
            position = _place(sound, piece.to_ndarray(), position)
        if position >= sound.shape[1]:
            return sound
    if position is not None:
        for piece in resampler.resample(None):
            position = _place(sound, piece.to_ndarray(), position)
    return sound


def _place(sound: NDArray[np.int16], piece: NDArray[np.int16], position: int) -> int:
    """Copy the part of `piece` (at `position`, which may be negative) that lies within `sound`; return its end."""
    end = position + piece.shape[1]
    low, high = max(position, 0), min(end, sound.shape[1])
    if low < high:
        sound[:, low:high] = piece[:, low - position : high - position]
    return end
