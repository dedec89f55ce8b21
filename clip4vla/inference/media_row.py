"""A media file in, the row of a clip out, as ingestion stores it: for files that are trusted, and for any others.

Imports neither torch nor a model, because each reader of `media_reader.py` is a process that runs this module.
"""

from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from clip4vla.clips.format import encode_row
from clip4vla.config import ClipsConfig, FrozenConfig, MediaLimits, Positive
from clip4vla.media.decode import LONGEST_SIDE, Span, decode
from clip4vla.media.source import MediaError
from clip4vla.records import SourceRecord

PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF")


class ReadRequest(FrozenConfig):
    """A file of any origin that is to be read within limits."""

    root: Path
    """Folder that the file must be in, with links resolved."""
    name: str
    """Path of the file, absolute or relative to `root`."""
    clips: ClipsConfig
    sample_rate: Positive
    pictures: bool = False
    """Whether a picture is taken, too: as a video that shows nothing else."""


def read_row(
    path: Path, clips: ClipsConfig, sample_rate: int, start_s: float = 0.0, end_s: float | None = None
) -> dict[str, Any]:
    """A span of a file as the pipeline stores it: frames, size, JPEG quality and longest sound of `clips`.

    Raises:
        MediaError: the file can't be used.
    """
    return _read(path, clips, sample_rate, clips.limits, start_s, end_s)


def read_row_within(request: ReadRequest, limits: MediaLimits) -> dict[str, Any]:
    """The same of a whole file of any origin.

    Raises:
        MediaError: `forbidden` (outside of the folder), `missing`, or what `read_row` raises.
    """
    path = locate(request.root, request.name)
    if limits.max_bytes is not None and (size := path.stat().st_size) > limits.max_bytes:
        raise MediaError("too_large", f"{path} has {size:,} bytes; at most {limits.max_bytes:,} are read")
    if request.pictures and (picture := _open_picture(path)) is not None:
        with picture:
            _check_picture(path, picture.width * picture.height, limits)
            frame = _upright(path, picture, request.clips.size)
        return _row(Span((frame,) * request.clips.frames, None), path, request.clips)
    return _read(path, request.clips, request.sample_rate, limits)


def locate(root: Path, name: str) -> Path:
    """The file `name` in the folder `root`, with links resolved.

    Raises:
        MediaError: `forbidden` or `missing`. Whether a file outside of the folder exists is not told.
    """
    try:
        path, folder = (root / name).resolve(), root.resolve()
        if not path.is_relative_to(folder):
            raise MediaError("forbidden", f"{name} is outside of the folder of media")
        if not path.is_file():
            raise MediaError("missing", f"no file {name}")
    except (OSError, ValueError, RuntimeError) as error:
        raise MediaError("missing", f"no file {name!r}: {error}") from error
    return path


def _read(
    path: Path,
    clips: ClipsConfig,
    sample_rate: int,
    limits: MediaLimits,
    start_s: float = 0.0,
    end_s: float | None = None,
) -> dict[str, Any]:
    span = decode(
        path,
        start_s,
        end_s,
        frames=clips.frames,
        short_side=clips.size,
        sample_rate=sample_rate,
        max_sound_s=clips.max_seconds,
        limits=limits,
    )
    return _row(span, path, clips)


def _row(span: Span, path: Path, clips: ClipsConfig) -> dict[str, Any]:
    return encode_row(SourceRecord(str(path), str(path), "test", ()), span, clips.jpeg_quality)


def _open_picture(path: Path) -> Image.Image | None:
    """The picture, of which only the head is read; None where the file is none."""
    try:
        return Image.open(path, formats=PICTURE_FORMATS)
    except UnidentifiedImageError:
        return None
    except Image.DecompressionBombError as error:
        raise MediaError("too_large", f"{path}: {error}") from error


def _check_picture(path: Path, pixels: int, limits: MediaLimits) -> None:
    if pixels > limits.max_pixels:
        raise MediaError("too_large", f"{path} has {pixels:,} pixels; at most {limits.max_pixels:,} are read")


def _upright(path: Path, picture: Image.Image, short_side: int) -> Image.Image:
    """RGB, turned as a viewer shows it, with a shorter side of `short_side` pixels, as `decode` makes frames."""
    try:
        upright = ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise MediaError("corrupt", f"{path}: {error}") from error
    scale = short_side / min(upright.size)
    size = (max(short_side, round(upright.width * scale)), max(short_side, round(upright.height * scale)))
    if max(size) > LONGEST_SIDE:
        raise MediaError("too_thin", f"{path} is {upright.width} x {upright.height} pixels")
    return upright.resize(size, Image.Resampling.BICUBIC)
