"""RGB frames and sound in, an .mp4 (H.264, AAC) or an .mp3 out; the same input gives the same bytes."""

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from numpy.typing import NDArray

X264 = {"preset": "veryfast", "crf": "23", "threads": "1", "rc-lookahead": "0"}
"""Without lookahead: x264's macroblock tree reads uninitialised memory when pictures are small, so that the same
frames would not give the same bytes."""
MP3_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
MP3_BITS_PER_SECOND = 32_000


def encode(
    path: Path, frames: NDArray[np.uint8], fps: int, audio: NDArray[np.float32] | None, sample_rate: int
) -> None:
    """Write `frames` (F, H, W, 3) at `fps` and `audio` (S,) in -1..1 at `sample_rate` to `path`.

    H and W must be even (4:2:0 chroma). Without `audio` the file has no audio track.
    """
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=fps, options=X264)
        video.pix_fmt = "yuv420p"
        video.height, video.width = frames.shape[1:3]
        # all streams are added before the first packet
        sound = None if audio is None else _add_sound(container, sample_rate)
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None and audio is not None:
            wave = av.AudioFrame.from_ndarray(audio[None].astype(np.float32), format="fltp", layout="mono")
            wave.sample_rate, wave.pts, wave.time_base = sample_rate, 0, Fraction(1, sample_rate)
            container.mux(sound.encode(wave))
            container.mux(sound.encode(None))


def _add_sound(container: OutputContainer, sample_rate: int) -> AudioStream:
    sound = container.add_stream("aac", rate=sample_rate, layout="mono", options={"aac_coder": "fast"})
    sound.bit_rate = 64_000
    return sound


def encode_mp3(audio: NDArray[np.int16], sample_rate: int) -> bytes:
    """The sound `audio` (C, S), C 1 or 2, as MP3, which every browser plays, at 4 kB a second.

    The format has no other sample rates than MP3_RATES: the next higher one is taken.
    """
    rate = next((rate for rate in MP3_RATES if rate >= sample_rate), MP3_RATES[-1])
    layout = "mono" if audio.shape[0] == 1 else "stereo"
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libmp3lame", rate=rate, layout=layout)
        stream.bit_rate = MP3_BITS_PER_SECOND
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(audio), format="s16p", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = sample_rate, 0, Fraction(1, sample_rate)
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return buffer.getvalue()
