"""A stored clip in, a card of it for people to look at out: small pictures and a sound that every browser plays."""

import io

from PIL import Image

from clip4vla.clips.format import Clip
from clip4vla.media.encode import encode_mp3
from clip4vla.pages import Card, Sound

PICTURES = 2
"""Most pictures on a card, evenly spread over those stored."""
LONGEST_SIDE = 192
"""A larger picture is made this small, in pixels."""
JPEG_QUALITY = 80
LONGEST_S = 12.0
"""Of a longer sound its beginning is on the card, which says so; pages would else grow beyond what a mail holds."""


def clip_card(clip: Clip, sample_rate: int, title: str) -> Card:
    """A card with pictures and sound of `clip`, and with a note where it lacks one of them.

    The caller adds what it has to say of the clip: `replace(clip_card(...), scores=..., texts=...)`.
    """
    count = min(PICTURES, len(clip.frames))
    shown = [clip.frames[(2 * index + 1) * len(clip.frames) // (2 * count)] for index in range(count)]
    sound, note = None, "No sound." if clip.frames else "Neither pictures nor sound."
    if clip.audio is not None:
        sound = Sound(encode_mp3(clip.audio[:, : round(LONGEST_S * sample_rate)], sample_rate))
        note = _note(clip.audio.shape[1] / sample_rate, bool(shown))
    return Card(title, [_small(jpeg) for jpeg in shown], sound, note=note)


def _note(seconds: float, seen: bool) -> str:
    cut = f"The first {LONGEST_S:g} of {seconds:.0f} seconds of sound." if seconds > LONGEST_S else ""
    return " ".join(filter(None, ("" if seen else "No pictures.", cut)))


def _small(jpeg: bytes) -> bytes:
    """The picture itself where it is small enough already."""
    picture = Image.open(io.BytesIO(jpeg))
    if max(picture.size) <= LONGEST_SIDE:
        return jpeg
    picture.thumbnail((LONGEST_SIDE, LONGEST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
