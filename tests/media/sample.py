"""Media files whose frames and moments can be identified: frame i has its own grey, sound begins at one second."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

SECONDS = 2.0
FPS = 10
ONSET_S = 1.0
TICK = Fraction(1, 1000)


GREYS = 22


def grey(index: int) -> int:
    return 20 + 10 * (index % GREYS)


def index_of(picture: Image.Image) -> int:
    """Which frame it is, by its grey, modulo GREYS."""
    return round((float(np.asarray(picture).mean()) - 20) / 10)


def tone(rate: int, seconds: float = SECONDS, onset_s: float = ONSET_S, hertz: float = 440.0) -> NDArray[np.float32]:
    """(S,) silence, then a tone from `onset_s` on."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * hertz * t) * (t >= onset_s)).astype(np.float32)


def onset(audio: NDArray[np.int16], rate: int) -> float:
    """Second at which the sound begins."""
    loud = np.abs(audio.astype(int)).max(axis=0)
    return float(np.flatnonzero(loud > 0.3 * loud.max())[0]) / rate


def write_media(
    path: Path,
    video: str | None = "libx264",
    audio: str | None = "aac",
    *,
    rate: int = 16000,
    layout: str = "mono",
    times: Sequence[float] = tuple(i / FPS for i in range(round(SECONDS * FPS))),
    size: tuple[int, int] = (64, 48),
    wave: NDArray[np.float32] | None = None,
    audio_at: float = 0.0,
    gap: tuple[float, float] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write `path`: frame i at `times[i]`, sound from `audio_at` on, (S,) or (C, S), with nothing during `gap`."""
    wave = tone(rate) if wave is None else wave
    with av.open(str(path), "w", options=options or {}) as container:
        streams = [
            _video_stream(container, video, size) if video else None,
            container.add_stream(audio, rate=rate, layout=layout) if audio else None,
        ]
        packets = [
            *(_encode_frames(streams[0], times, size) if video else ()),
            *(encode_sound(streams[1], wave, rate, layout, audio_at, gap) if audio else ()),
        ]
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            container.mux(packet)
    return path


def _video_stream(container, codec: str, size: tuple[int, int]):
    stream = container.add_stream(codec, rate=FPS)
    stream.width, stream.height = size
    stream.pix_fmt = "yuv420p"
    stream.gop_size = 5
    stream.codec_context.time_base = TICK if codec != "mpeg4" else Fraction(1, FPS)
    return stream


def _encode_frames(stream, times: Sequence[float], size: tuple[int, int]):
    base = stream.codec_context.time_base
    for index, time in enumerate(times):
        frame = av.VideoFrame.from_ndarray(np.full((size[1], size[0], 3), grey(index), np.uint8), format="rgb24")
        frame.pts, frame.time_base = round(time / base), base
        yield from stream.encode(frame)
    yield from stream.encode(None)


def encode_sound(stream, wave: NDArray[np.float32], rate: int, layout: str, start: float = 0.0, gap=None):
    channels = len(av.AudioLayout(layout).channels)
    waves = np.ascontiguousarray(np.broadcast_to(np.atleast_2d(wave), (channels, wave.shape[-1])))
    resampler = av.AudioResampler(format=stream.format, layout=layout, rate=stream.rate)
    for first in range(0, waves.shape[1], 1024):
        if gap and gap[0] <= first / rate < gap[1]:
            continue
        piece = np.ascontiguousarray(waves[:, first : first + 1024])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, first + round(start * rate), Fraction(1, rate)
        for resampled in resampler.resample(frame):
            yield from stream.encode(resampled)
    for resampled in resampler.resample(None):
        yield from stream.encode(resampled)
    yield from stream.encode(None)


def rotate_metadata(path: Path, quarter_turns: int) -> Path:
    """Mark an .mp4 as turned clockwise: the matrix in the track header of its video."""
    a, b = [(1, 0), (0, 1), (-1, 0), (0, -1)][quarter_turns % 4]
    matrix = np.array([a, b, 0, -b, a, 0, 0, 0, 0x4000], ">i4") * np.array([0x10000] * 8 + [0x10000], ">i4")
    data = path.read_bytes()
    place = data.index(b"tkhd") + 4 + 40
    path.write_bytes(data[:place] + matrix.astype(">i4").tobytes() + data[place + 36 :])
    return path
