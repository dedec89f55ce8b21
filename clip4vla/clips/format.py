"""A row of a clips data set: what is stored of one clip, and how it is encoded and decoded.

Waveforms are stored, not spectrograms, so that changing the front end re-cuts nothing.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from clip4vla.corpora.manifest import TEXTS
from clip4vla.media.decode import Span
from clip4vla.records import SourceRecord, Text

_UNCOMPRESSED_AUDIO = pa.field("audio", pa.binary(), metadata={"lance-encoding:compression": "none"})
"""Compression would save a tenth of the space and take half the time of reading clips."""

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("frames", pa.list_(pa.binary())),  # JPEG; empty without a video stream
        _UNCOMPRESSED_AUDIO,  # int16 PCM, channels interleaved; null without an audio stream
        ("channels", pa.int8()),
        ("speech", pa.float32()),  # share of the sound that is speech; null unless clips.verbal_above is set
        ("texts", TEXTS),
        ("media", pa.string()),
        ("start_s", pa.float64()),
        ("end_s", pa.float64()),
        ("notes", pa.list_(pa.string())),  # what of the file isn't used, and why
    ]
)

STORAGE: Final = "2.1"
"""Version of Lance's files. In those of 2.2 the time to read a row grows with its page, where a column has one value
throughout, as `channels` and the types of `texts` often have."""


@dataclass(frozen=True)
class Clip:
    """One clip as read back; frames stay JPEG until some are chosen."""

    clip_id: str
    frames: tuple[bytes, ...]
    audio: NDArray[np.int16] | None
    """(C, S)"""
    texts: tuple[Text, ...]

    @property
    def has_sound(self) -> bool:
        """Whether it has an audio track with any sample."""
        return self.audio is not None and self.audio.size > 0


def encode_row(record: SourceRecord, span: Span, jpeg_quality: int, speech: float | None = None) -> dict[str, Any]:
    """The row of `record`, whose media decoded to `span`, of which the share `speech` is speech."""
    return {
        "clip_id": record.clip_id,
        "frames": [_to_jpeg(frame, jpeg_quality) for frame in span.frames],
        "audio": None if span.audio is None else span.audio.T.tobytes(),
        "channels": 0 if span.audio is None else span.audio.shape[0],
        "speech": speech,
        "texts": [{"text": text.text, "audio_type": text.audio_type} for text in record.texts],
        "media": record.media,
        "start_s": record.start_s,
        "end_s": record.end_s,
        "notes": list(span.notes),
    }


def decode_row(row: Mapping[str, Any]) -> Clip:
    """The clip of a row read with the columns clip_id, frames, audio, channels and texts."""
    audio = row["audio"]
    if audio is not None:
        audio = np.frombuffer(audio, np.int16).reshape(-1, row["channels"]).T
    return Clip(row["clip_id"], tuple(row["frames"]), audio, tuple(Text(**text) for text in row["texts"]))


def decode_frame(jpeg: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) RGB."""
    return np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB"))


def _to_jpeg(frame: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    frame.save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()
