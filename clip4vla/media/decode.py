"""A span of a media file in, evenly spread RGB frames and 16-bit sound out.

What can't be used is a `MediaError` with a short reason (it becomes a row of the rejects table) and the detail.
Times are seconds from the first moment of the file, also where a container counts from elsewhere (MPEG-TS).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.audio.resampler import AudioResampler
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from numpy.typing import NDArray
from PIL import Image

SEEK_BACK_S = (0.25, 5.0, 60.0, math.inf)
"""How far before a moment to begin to decode; the next one where the container had nothing so early."""
MIN_SECONDS = 0.1
GAP_S = 0.1
"""Sound whose timestamp is further than this from where the sound before it ended is put where it belongs."""
BAD_PACKETS, BAD_SHARE = 3, 0.02
"""How many packets, and which share of them, may be undecodable: two sounds strung together, junk between them."""
PRIMING_S = 0.15
"""A clock that begins this little before zero does so for what a codec hears to get going, which isn't played."""
LONGEST_SIDE = 16_384
"""Pixels of the longer side of a frame; beyond it a file has no shape that a picture could be kept of."""
MISSING_S, MISSING_SHARE = 1.0, 0.1
"""A file is incomplete when pictures and sound both end this long before the end of the span, and this share of it.
(Less is how far a duration can be off that a container estimates from its bit rate.)"""


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


def decode(path: Path, start_s: float, end_s: float | None, *, frames: int, short_side: int, sample_rate: int) -> Span:
    """Decode `frames` evenly spread frames and the sound of `start_s`..`end_s` (None: the end of the file).

    A frame is the one on screen at the middle of its share of the span, by timestamps, so that variable frame
    rates come out right; its shorter side becomes `short_side` pixels, by bicubic interpolation as CLIP's do. Sound
    is resampled to `sample_rate`; mono stays mono, more than two channels are mixed down to stereo. The picture on
    the cover of a sound file is no video.

    Raises:
        MediaError: `missing`, `corrupt`, `no_streams`, `too_short` (under a tenth of a second in the span),
            `too_thin` (one side of the picture is hundreds of times the other), or `truncated` (pictures and sound
            end before the file says they do).
    """
    if not path.is_file():
        raise MediaError("missing", f"no file {path}")
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            source = _open_source(container, path)
            end_s = source.duration_s if end_s is None else min(end_s, source.duration_s)
            if end_s - start_s < MIN_SECONDS:
                raise MediaError("too_short", f"{path} has {max(0.0, end_s - start_s):.3f} s from {start_s} s on")
            audio, heard_s = _decode_audio(source, start_s, end_s, sample_rate)
            pictures, seen_s = _decode_frames(source, start_s, end_s, frames)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError("corrupt", f"{path}: {error}") from error
    if end_s - max(heard_s, seen_s) > max(MISSING_S, MISSING_SHARE * (end_s - start_s)):
        raise MediaError("truncated", f"{path} ends at {max(heard_s, seen_s):.3f} s, not at {end_s:.3f} s")
    reformatter = VideoReformatter()
    return Span(tuple(_upright(picture, short_side, reformatter, path) for picture in pictures), audio)


def duration_s(path: Path) -> float:
    """Seconds that the file lasts.

    Raises:
        MediaError: `missing`, `corrupt` or `no_streams`.
    """
    if not path.is_file():
        raise MediaError("missing", f"no file {path}")
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            return _open_source(container, path).duration_s
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError("corrupt", f"{path}: {error}") from error


@dataclass(frozen=True)
class _Source:
    """An open file: its streams, and where its clock begins and ends."""

    container: InputContainer
    video: av.VideoStream | None
    audio: av.AudioStream | None
    origin_s: float
    """Timestamp of the first moment."""
    duration_s: float

    def pictures(self, start_s: float) -> Iterator[tuple[float, av.VideoFrame]]:
        """Frames with the moment at which each appears, from the one on screen at `start_s` on or earlier."""
        for time_s, frame in self._decode_from(self.video, start_s):
            assert isinstance(frame, av.VideoFrame)
            yield time_s, frame

    def sounds(self, start_s: float) -> Iterator[tuple[float, av.AudioFrame]]:
        """Pieces of sound with the moment at which each begins, from `start_s` on or earlier."""
        for time_s, frame in self._decode_from(self.audio, start_s):
            assert isinstance(frame, av.AudioFrame)
            yield time_s, frame

    def _decode_from(
        self, stream: av.VideoStream | av.AudioStream | None, start_s: float
    ) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        """Some demuxers (MPEG-TS) land after what was asked for: then again, from further back."""
        if stream is None:
            return
        for back_s in SEEK_BACK_S:
            frames = self._decode_near(stream, start_s - back_s)
            first = next(frames, None)
            if first is not None and (first[0] <= start_s or start_s <= back_s):
                yield first
                yield from frames
                return

    def _decode_near(
        self, stream: av.VideoStream | av.AudioStream, time_s: float
    ) -> Iterator[tuple[float, av.VideoFrame | av.AudioFrame]]:
        # MPEG-TS lands after what was asked for; not every container can be asked for less than 0
        first_s = 0.0 if self.origin_s >= 0 else self.origin_s - SEEK_BACK_S[1]
        moment_s = self.origin_s + time_s if time_s > 0 else first_s
        self.container.seek(int(moment_s * av.time_base))
        for frame in _decode_stream(self.container, stream):
            if frame.time is None:
                raise ValueError("what was decoded has no timestamp")
            yield frame.time - self.origin_s, frame


def _decode_stream(
    container: InputContainer, stream: av.VideoStream | av.AudioStream
) -> Iterator[av.VideoFrame | av.AudioFrame]:
    """The frames of a stream, without those of a few packets that can't be decoded; players skip them, too."""
    bad = 0
    for number, packet in enumerate(container.demux(stream), 1):
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            bad += 1
            if bad > max(BAD_PACKETS, BAD_SHARE * number):
                raise
            continue
        for frame in frames:
            assert isinstance(frame, av.VideoFrame | av.AudioFrame)
            yield frame


def _open_source(container: InputContainer, path: Path) -> _Source:
    moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    video = moving[0] if moving else None
    audio = container.streams.audio[0] if container.streams.audio else None
    if not video and not audio:
        raise MediaError("no_streams", f"{path} has neither video nor audio")
    for stream in filter(None, (video, audio)):
        stream.codec_context.thread_count = 1  # processes decode in parallel, one for each core
    origin_s = _origin(container)
    return _Source(container, video, audio, origin_s, _duration(container, origin_s))


def _origin(container: InputContainer) -> float:
    """Timestamp of the first moment that is played; Matroska has none before 0."""
    start_s = (container.start_time or 0) / av.time_base
    is_priming = "matroska" in container.format.name or start_s >= -PRIMING_S
    return max(0.0, start_s) if is_priming else start_s


def _duration(container: InputContainer, origin_s: float) -> float:
    """Seconds from the first moment to the last; Matroska states the timestamp of the last."""
    if not container.duration:
        return _last_timestamp(container) - origin_s
    return container.duration / av.time_base - (origin_s if "matroska" in container.format.name else 0.0)


def _last_timestamp(container: InputContainer) -> float:
    """End of the last packet, for containers that don't state their duration (a live webm)."""
    ends = [
        float((packet.pts + (packet.duration or 0)) * packet.time_base)
        for packet in container.demux()
        if packet.pts is not None
    ]
    container.seek(0)
    return max(ends, default=0.0)


def _decode_frames(source: _Source, start_s: float, end_s: float, count: int) -> tuple[list[av.VideoFrame], float]:
    """`count` frames, none without a video stream, and the time up to which there is something to see."""
    targets_s = [start_s + (i + 0.5) * (end_s - start_s) / count for i in range(count)]
    picked: list[av.VideoFrame] = []
    shown: av.VideoFrame | None = None
    until_s = 0.0
    for time_s, frame in source.pictures(start_s):
        while shown is not None and len(picked) < count and time_s > targets_s[len(picked)]:
            picked.append(shown)
        shown = frame
        until_s = time_s + float(frame.duration * (frame.time_base or 0))
        if len(picked) == count:
            return picked, end_s
    if source.video and shown is None:
        raise MediaError("corrupt", f"no frame could be decoded between {start_s} and {end_s} s")
    return picked + [shown] * (count - len(picked)) if shown else [], until_s


def _upright(frame: av.VideoFrame, short_side: int, reformatter: VideoReformatter, path: Path) -> Image.Image:
    scale = short_side / min(frame.width, frame.height)
    size = (max(short_side, round(frame.width * scale)), max(short_side, round(frame.height * scale)))
    if max(size) > LONGEST_SIDE:
        raise MediaError("too_thin", f"{path} is {frame.width} x {frame.height} pixels")
    picture = reformatter.reformat(frame, *size, format="rgb24", interpolation="BICUBIC").to_image()
    return picture.rotate(frame.rotation, expand=True) if frame.rotation else picture


def _decode_audio(
    source: _Source, start_s: float, end_s: float, sample_rate: int
) -> tuple[NDArray[np.int16] | None, float]:
    """The sound of the span, None without an audio stream, and the time up to which there is something to hear."""
    if not source.audio:
        return None, 0.0
    channels = 1 if source.audio.codec_context.channels == 1 else 2
    track = _Track(np.zeros((channels, round((end_s - start_s) * sample_rate)), np.int16), sample_rate)
    for time_s, frame in source.sounds(start_s):
        track.add(time_s - start_s, frame)
        if track.position >= track.sound.shape[1]:
            return track.sound, end_s
    track.flush()
    return track.sound, start_s + track.position / sample_rate


class _Track:
    """The sound of a span, filled from frames, each put at its time: silence where there are none."""

    def __init__(self, sound: NDArray[np.int16], sample_rate: int) -> None:
        self.sound = sound
        self.position = 0
        """Sample at which the next resampled piece belongs; negative before the span."""
        self._sample_rate = sample_rate
        self._resampler: AudioResampler | None = None
        self._kind = ("", "", 0)
        """Format, layout and rate of the sound so far, which may change within a file."""
        self._next_s = 0.0

    def add(self, time_s: float, frame: av.AudioFrame) -> None:
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or kind != self._kind or abs(time_s - self._next_s) > GAP_S:
            self.flush()
            self._kind = kind
            layout = "mono" if self.sound.shape[0] == 1 else "stereo"
            self._resampler = AudioResampler(format="s16p", layout=layout, rate=self._sample_rate)
            self.position = round(time_s * self._sample_rate)
            self._next_s = time_s
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
            low, high = max(self.position, 0), min(end, self.sound.shape[1])
            if low < high:
                self.sound[:, low:high] = samples[:, low - self.position : high - self.position]
            self.position = end
