"""A span of a media file in, evenly spread RGB frames and 16-bit sound out.

What can't be used is a `MediaError` with a short reason (it becomes a row of the rejects table) and the detail; a file
of which only the pictures or only the sound can be used is used for these, with a note. Only what is kept is decoded:
between frames that are far apart, and to the sound that is kept, by seeking.
"""

import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol, TypeVar, cast

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.sidedata.sidedata import SideData, Type
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

from clip4vla.config import MediaLimits
from clip4vla.media.source import MediaError, Source, open_source

MIN_SECONDS = 0.1
GAP_S = 0.1
"""Sound whose timestamp is further than this from where the sound before it ended is put where it belongs."""
SEEK_AHEAD_S = 10.0
"""Frames further apart than this are sought; others are reached by decoding what is between them."""
LONGEST_SIDE = 16_384
"""Pixels of the longer side of a frame; beyond it a file has no shape that a picture could be kept of."""
MISSING_S, MISSING_SHARE = 1.0, 0.1
"""A file is incomplete when pictures and sound both end this long before the end of the span, and this share of it.
(Less is how far a stated duration can be off.)"""
FLOATS: dict[str, type[np.floating]] = {"flt": np.float32, "fltp": np.float32, "dbl": np.float64, "dblp": np.float64}
"""Formats whose samples may be NaN or infinite."""
LIMITS = MediaLimits()


@dataclass(frozen=True)
class Span:
    """What a span of a media file holds."""

    frames: tuple[Image.Image, ...]
    """RGB, upright, in order of time; empty when there is no video stream."""
    audio: NDArray[np.int16] | None
    """(C, S) with C 1 or 2; None when there is no sound."""
    notes: tuple[str, ...] = ()
    """What of the file isn't used, and why."""


def decode(
    path: Path,
    start_s: float,
    end_s: float | None,
    *,
    frames: int,
    short_side: int,
    sample_rate: int,
    max_sound_s: float = math.inf,
    limits: MediaLimits = LIMITS,
) -> Span:
    """Decode `frames` evenly spread frames and the sound of `start_s`..`end_s` (None: the end of the file).

    A frame is the one on screen at the middle of its share of the span, by timestamps, so that variable frame
    rates come out right, as a player shows it: turned, mirrored and stretched as the file states. Its shorter side
    becomes `short_side` pixels, by bicubic interpolation as CLIP's do. Sound is resampled to `sample_rate`; mono stays
    mono, more than two channels are mixed down to stereo; of more than `max_sound_s` the middle is kept. Of several
    tracks the default one is used, else the first. The picture on the cover of a sound file is no video.

    Raises:
        MediaError: what `open_source` raises, `too_short` (under a tenth of a second in the span), `too_thin` (one
            side of the picture is hundreds of times the other), or `truncated` (pictures and sound end before the
            file says they do).
    """
    with open_source(path, limits) as source:
        end_s = source.duration_s if end_s is None else min(end_s, source.duration_s)
        if end_s - start_s < MIN_SECONDS:
            raise MediaError("too_short", f"{path} has {max(0.0, end_s - start_s):.3f} s from {start_s} s on")
        audio, heard_s = _decode_audio(source, start_s, end_s, sample_rate, max_sound_s)
        pictures, seen_s = decode_frames(source, start_s, end_s, frames, short_side)
        check_found(source, start_s, end_s, heard_s, seen_s)
        return Span(tuple(pictures), audio, tuple(source.notes))


def duration_s(path: Path, limits: MediaLimits = LIMITS) -> float:
    """Seconds that the file lasts.

    Raises:
        MediaError: what `open_source` raises.
    """
    with open_source(path, limits) as source:
        return source.duration_s


def check_found(source: Source, start_s: float, end_s: float, heard_s: float | None, seen_s: float | None) -> None:
    """Raise MediaError where neither pictures nor sound were found, or both end before `end_s`."""
    found = [until_s for until_s in (heard_s, seen_s) if until_s is not None]
    if not found:
        why = "; ".join(source.notes)
        raise MediaError("corrupt", f"{source.path}: nothing between {start_s:g} and {end_s:g} s can be decoded: {why}")
    if end_s - max(found) > max(MISSING_S, MISSING_SHARE * (end_s - start_s)):
        raise MediaError("truncated", f"{source.path} ends at {max(found):.3f} s, not at {end_s:.3f} s")


def decode_frames(
    source: Source, start_s: float, end_s: float, count: int, short_side: int
) -> tuple[list[Image.Image], float | None]:
    """`count` frames and the time up to which there is something to see; none, and None, without usable video."""
    targets_s = [start_s + (i + 0.5) * (end_s - start_s) / count for i in range(count)]
    for stream in source.video:
        player, painter = _Player(source, stream, start_s), _Painter(source, stream, short_side)
        try:
            pictures = [painter.paint(frame) for time_s in targets_s if (frame := player.frame_at(time_s)) is not None]
        except (av.error.FFmpegError, ValueError) as error:
            source.notes.append(f"video stream {stream.index} can't be decoded: {error}")
            continue
        if pictures:
            return pictures, player.until_s if player.has_ended else end_s
        source.notes.append(f"video stream {stream.index} has no frame from {start_s:g} to {end_s:g} s")
    return [], None


class _Player:
    """The frames of a stream in order of time, those between two that are wanted skipped where they are many."""

    def __init__(self, source: Source, stream: av.VideoStream, start_s: float) -> None:
        self.until_s = 0.0
        """End of the last frame that was on screen."""
        self._source = source
        self._stream = stream
        self._frames = source.pictures(stream, start_s)
        self._shown: av.VideoFrame | None = None
        self._shown_s = start_s
        self._next = next(self._frames, None)
        self._can_seek = True

    @property
    def has_ended(self) -> bool:
        """Whether no frame follows the one on screen."""
        return self._next is None

    def frame_at(self, time_s: float) -> av.VideoFrame | None:
        """The frame on screen at `time_s`, not before that of the call before, or the first; None where none is."""
        if self._can_seek and time_s - self._shown_s > SEEK_AHEAD_S:
            self._seek(time_s)
        while self._next is not None and (self._shown is None or self._next[0] <= time_s):
            self._shown_s, self._shown = self._next
            self.until_s = self._shown_s + float((self._shown.duration or 0) * (self._shown.time_base or 0))
            self._next = next(self._frames, None)
        return self._shown

    def _seek(self, time_s: float) -> None:
        frames = self._source.pictures(self._stream, time_s)
        landed = next(frames, None)
        if landed is None or landed[0] <= self._shown_s:
            self._can_seek = False  # the container only goes back to its beginning
        if landed is not None:
            self._frames, self._next = frames, landed


class _Painter:
    """Makes pictures of frames as a player shows them: upright, with square pixels, of one size."""

    def __init__(self, source: Source, stream: av.VideoStream, short_side: int) -> None:
        self._source = source
        self._short_side = short_side
        self._pixel_shape = stream.sample_aspect_ratio or Fraction(1)
        self._reformatter = VideoReformatter()
        self._last: tuple[av.VideoFrame, Image.Image] | None = None

    def paint(self, frame: av.VideoFrame) -> Image.Image:
        """RGB; the same picture again for the same frame."""
        if self._last is None or self._last[0] is not frame:
            self._last = frame, self._convert(frame)
        return self._last[1]

    def _convert(self, frame: av.VideoFrame) -> Image.Image:
        width, height = float(frame.width * self._pixel_shape), frame.height
        scale = self._short_side / min(width, height)
        size = (max(self._short_side, round(width * scale)), max(self._short_side, round(height * scale)))
        if max(size) > LONGEST_SIDE:
            raise MediaError("too_thin", f"{self._source.path} is {width:g} x {height} pixels")
        return _upright(frame, self._reformatter.reformat(frame, *size, format="rgb24", interpolation="BICUBIC"))


def _upright(frame: av.VideoFrame, resized: av.VideoFrame) -> Image.Image:
    """`resized` turned and mirrored by the display matrix of `frame`."""
    picture = resized.to_image()
    orientation = _orientation(frame)
    if orientation == 0:
        return picture
    turn = frame.rotation
    if orientation < 0:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        turn += 180
    return picture.rotate(turn, expand=True) if turn else picture


def _orientation(frame: av.VideoFrame) -> int:
    """The determinant of the display matrix (ISO 14496-12: a, b, u, c, d, v, x, y, w): negative where it mirrors.

    0: there is none, or one that would leave nothing to be seen.
    """
    of_frame = cast("Iterable[SideData]", frame.side_data)
    matrices = [bytes(data) for data in of_frame if data.type == Type.DISPLAYMATRIX]
    if not matrices:
        return 0
    a, b, _, c, d, *_ = struct.unpack("=9i", matrices[0])
    return int(a * d - b * c)


class SoundSink(Protocol):
    """Takes the sound of a span piece by piece."""

    def add(self, start: int, samples: NDArray[np.int16]) -> None:
        """Take `samples` (C, S), the first of which is number `start` of the span."""


class SoundBuffer:
    """All samples of a span, silence where there are none."""

    def __init__(self, channels: int, samples: int) -> None:
        self.sound = np.zeros((channels, samples), np.int16)

    def add(self, start: int, samples: NDArray[np.int16]) -> None:
        """Store `samples`."""
        self.sound[:, start : start + samples.shape[1]] = samples


Sink = TypeVar("Sink", bound=SoundSink)


def _decode_audio(
    source: Source, start_s: float, end_s: float, sample_rate: int, max_sound_s: float
) -> tuple[NDArray[np.int16] | None, float | None]:
    """The sound that is kept of a span, None without any, and the time up to which there is something to hear."""
    total = round((end_s - start_s) * sample_rate)
    kept = total if max_sound_s == math.inf else min(total, round(max_sound_s * sample_rate))
    first_s = start_s + (total - kept) // 2 / sample_rate
    found = decode_sound(source, first_s, kept, sample_rate, lambda channels: SoundBuffer(channels, kept))
    if found is None:
        return None, None
    stream, buffer, until_s = found
    is_full = until_s >= first_s + kept / sample_rate
    if is_full:  # what follows is only looked for, not decoded
        until_s = end_s if kept == total else source.last_moment(stream, end_s)
    return buffer.sound, until_s


def decode_sound(
    source: Source, start_s: float, samples: int, sample_rate: int, make_sink: Callable[[int], Sink]
) -> tuple[av.AudioStream, Sink, float] | None:
    """Give `samples` of sound from `start_s` on to a sink.

    Args:
        make_sink: makes a sink for a number of channels.

    Returns:
        The stream that was used, its sink, and the time up to which there is something to hear; None where no stream
        can be used.
    """
    for stream in source.audio:
        channels = 1 if stream.codec_context.channels == 1 else 2
        sink = make_sink(channels)
        try:
            track = _fill(_Track(sink, channels, samples, sample_rate), source, stream, start_s)
            if track.is_empty and next(source.sounds(stream, 0.0), None) is None:
                source.notes.append(f"audio stream {stream.index} is empty")
                continue
        except (av.error.FFmpegError, ValueError) as error:
            source.notes.append(f"audio stream {stream.index} can't be decoded: {error}")
            continue
        if track.not_finite:
            share = f"{track.not_finite:,} of {track.added:,} samples"
            if track.not_finite == track.added:
                source.notes.append(f"audio stream {stream.index} has no sample that is a finite number")
                continue
            source.notes.append(f"{share} of audio stream {stream.index} are no finite numbers: they count as silence")
        return stream, sink, start_s + min(track.position, samples) / sample_rate
    return None


def _fill(track: "_Track", source: Source, stream: av.AudioStream, start_s: float) -> "_Track":
    for time_s, frame in source.sounds(stream, start_s):
        track.add(time_s - start_s, frame)
        if track.position >= track.samples:
            return track
    track.flush()
    return track


class _Track:
    """The sound of a span, from frames, each put at its time."""

    def __init__(self, sink: SoundSink, channels: int, samples: int, sample_rate: int) -> None:
        self.samples = samples
        self.position = 0
        """Sample at which the next resampled piece belongs; negative before the span."""
        self.added = 0
        """Samples of all channels that were decoded."""
        self.not_finite = 0
        """Those of them that were NaN or infinite, and were set to 0."""
        self._sink = sink
        self._layout = "mono" if channels == 1 else "stereo"
        self._sample_rate = sample_rate
        self._resampler: AudioResampler | None = None
        self._kind: tuple[str, str, int] | None = None
        """Format, layout and rate of the sound so far, which may change within a file."""
        self._next_s = 0.0

    @property
    def is_empty(self) -> bool:
        """Whether no frame was added."""
        return self._kind is None

    def add(self, time_s: float, frame: av.AudioFrame) -> None:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or kind != self._kind or abs(time_s - self._next_s) > GAP_S:
            self.flush()
            self._kind = kind
            self._resampler = AudioResampler(format="s16p", layout=self._layout, rate=self._sample_rate)
            self.position = round(time_s * self._sample_rate)
            self._next_s = time_s
        self.added += frame.samples * frame.layout.nb_channels
        self.not_finite += _silence_what_is_not_finite(frame)
        self._next_s += frame.samples / frame.sample_rate
        self._place(self._resampler, frame)

    def flush(self) -> None:
        """Place what the resampler still holds."""
        if self._resampler is not None:
            self._place(self._resampler, None)
            self._resampler = None

    def _place(self, resampler: AudioResampler, frame: av.AudioFrame | None) -> None:
        for piece in resampler.resample(frame):
            samples = piece.to_ndarray().astype(np.int16, copy=False)
            end = self.position + samples.shape[1]
            low, high = max(self.position, 0), min(end, self.samples)
            if low < high:
                self._sink.add(low, samples[:, low - self.position : high - self.position])
            self.position = end


def _silence_what_is_not_finite(frame: av.AudioFrame) -> int:
    """Set samples that are NaN or infinite to 0, and count them: as whole numbers they would be the loudest."""
    kind = FLOATS.get(frame.format.name)
    if kind is None:
        return 0
    count = frame.samples * (1 if frame.format.is_planar else frame.layout.nb_channels)
    silenced = 0
    for plane in frame.planes:
        samples = np.frombuffer(memoryview(plane), kind, count)
        finite = np.isfinite(samples)
        if not finite.all():
            samples[~finite] = 0
            silenced += int((~finite).sum())
    return silenced
