"""What a file says of itself: a file of any origin in, its container and the size of its pictures out.

FFmpeg also reads playlists, scripts and devices, which name other files and addresses; a file that is none of
`CONTAINERS` is not opened.
"""

from dataclasses import dataclass
from pathlib import Path

import av
from av.stream import Disposition

from clip4vla.media.decode import MediaError

CONTAINERS = (
    *("mov", "matroska", "avi", "mpeg", "mpegts", "flv", "asf", "mxf", "rm"),
    *("ogg", "wav", "w64", "flac", "mp3", "aac", "ac3", "aiff", "amr", "caf", "au"),
)
"""FFmpeg's names of the containers of video and sound."""


@dataclass(frozen=True)
class Probed:
    """What the head of a file states."""

    container: str
    pixels: int
    """Of a frame of the largest video stream; 0 without one. The picture on the cover of a sound is none."""


def probe(path: Path) -> Probed:
    """Read the head of a file; nothing is decoded.

    Raises:
        MediaError: `container` (none of `CONTAINERS`), or `corrupt`.
    """
    allowed = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "file"}
    try:
        with av.open(str(path.absolute()), metadata_errors="ignore", container_options=allowed) as container:
            moving = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
            sizes = [stream.codec_context.width * stream.codec_context.height for stream in moving]
            return Probed(container.format.name, max(sizes, default=0))
    except av.error.ArgumentError as error:
        raise MediaError("container", f"{path} is none of {', '.join(CONTAINERS)}") from error
    except (av.error.FFmpegError, OSError) as error:
        raise MediaError("corrupt", f"{path}: {error.strerror}") from error
