"""A preview of a stored clip: a `Clip` in, a few small pictures and a short sound that every browser plays, out.

Small enough to be stored in an index for each of its clips, and to be put into a page by the dozen.
"""

import io
from dataclasses import dataclass

from PIL import Image

from clip4vla.clips.format import Clip
from clip4vla.media.encode import encode_mp3

PICTURES = 2
"""Most pictures of a preview, evenly spread over the stored frames."""
LONGEST_SIDE = 192
"""Pixels; a larger picture is scaled down to it."""
JPEG_QUALITY = 80
LONGEST_S = 12.0
"""Seconds; of a longer sound the preview has the beginning."""


@dataclass(frozen=True)
class Preview:
    """What is shown of a clip."""

    pictures: tuple[bytes, ...]
    """JPEG, in order of time; none where the clip has no frames."""
    sound: bytes | None
    """MP3; None where the clip has no audio track."""


def make_preview(clip: Clip, sample_rate: int) -> Preview:
    """The preview of `clip`, whose audio has `sample_rate`."""
    count = min(PICTURES, len(clip.frames))
    frames = [clip.frames[(2 * index + 1) * len(clip.frames) // (2 * count)] for index in range(count)]
    sound = None if clip.audio is None else encode_mp3(clip.audio[:, : round(LONGEST_S * sample_rate)], sample_rate)
    return Preview(tuple(map(_scaled_down, frames)), sound)


def _scaled_down(jpeg: bytes) -> bytes:
    """The same bytes where the picture is small enough already."""
    picture = Image.open(io.BytesIO(jpeg))
    if max(picture.size) <= LONGEST_SIDE:
        return jpeg
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
