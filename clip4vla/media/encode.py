"""RGB frames and mono sound in, an .mp4 (H.264, AAC) out; the same input gives the same bytes."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def encode(path: Path, frames: NDArray[np.uint8], fps: int, audio: NDArray[np.float32], sample_rate: int) -> None:
    """Write `frames` (F, H, W, 3) at `fps` and `audio` (S,) in -1..1 at `sample_rate` to `path`.

    H and W must be even (4:2:0 chroma).
    """
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        video = container.add_stream("libx264", rate=fps, options={"preset": "veryfast", "crf": "23", "threads": "1"})
        video.pix_fmt = "yuv420p"
        video.height, video.width = frames.shape[1:3]
        sound = container.add_stream("aac", rate=sample_rate, layout="mono", options={"aac_coder": "fast"})
        sound.bit_rate = 64_000
        for index, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        wave = av.AudioFrame.from_ndarray(audio[None].astype(np.float32), format="fltp", layout="mono")
        wave.sample_rate, wave.pts, wave.time_base = sample_rate, 0, Fraction(1, sample_rate)
        container.mux(sound.encode(wave))
        container.mux(sound.encode(None))
