"""An example that a person sends: the body of a request in, a clip as each model reads it out."""

import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

from clip4vla.clips.format import Clip
from clip4vla.inference.embedder import Embedder
from clip4vla.inference.media_reader import MediaReader
from clip4vla.inference.media_row import ReadRequest
from clip4vla.media.source import MediaError

NAME = "your file"
"""What messages call it."""


@contextmanager
def upload_folder() -> Iterator[Path]:
    """A folder for one upload, removed with the block."""
    with tempfile.TemporaryDirectory(prefix="clip4vla-upload-") as folder:
        yield Path(folder)


async def receive(parts: AsyncIterator[bytes], folder: Path, max_bytes: int) -> None:
    """Write an upload into `folder`, and stop where it gets larger than `max_bytes`.

    Raises:
        MediaError: `too_large`, or `empty`.
    """
    size = 0
    with (folder / NAME).open("wb") as file:
        async for part in parts:
            size += len(part)
            if size > max_bytes:
                raise MediaError("too_large", f"{NAME} has more than {max_bytes:,} bytes")
            file.write(part)
    if not size:
        raise MediaError("empty", f"{NAME} is empty")


def read_upload(reader: MediaReader, folder: Path, embedder: Embedder) -> Clip:
    """The clip of the upload in `folder`, a picture included, as the model of `embedder` reads it.

    Raises:
        MediaError: it can't be used, or breaks a limit of `reader`.
    """
    clips, rate = embedder.inference.clips, embedder.sample_rate
    return reader.read(ReadRequest(root=folder, name=NAME, clips=clips, sample_rate=rate, pictures=True))
