"""A Lance data set of synthetic clips: noise for frames and sound, and two sentences each.

Benchmarks and tests train on it and load it where no corpus is needed. Lance and PyAV, behind the format of a clip,
are imported only when something is written.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from clip4vla.records import SourceRecord, Text

JPEG_QUALITY = 90


def write_clips(
    path: Path,
    clips: int = 16,
    *,
    frames: int = 1,
    size: int = 72,
    samples: int = 12000,
    channels: int = 1,
    mode: str = "create",
) -> Path:
    """Write `clips` of them to `path`, the first without a sound, and return it.

    Args:
        frames: JPEGs of a clip, (size, size) pixels of noise.
        samples: of each channel, int16 at the rate that the reader assumes.
        mode: Lance's; `overwrite` writes a new version.

    Raises:
        SystemExit: Lance or PyAV isn't installed.
    """
    try:
        import lance
        import pyarrow as pa

        from clip4vla.clips.format import SCHEMA, STORAGE, encode_row
        from clip4vla.media.decode import Span
    except ModuleNotFoundError as error:
        raise SystemExit(f"clips are stored by Lance and PyAV: {error}; `pip install pylance av`") from error
    rng = np.random.default_rng(0)
    rows = []
    for index in range(clips):
        pictures = tuple(Image.fromarray(rng.integers(0, 255, (size, size, 3), np.uint8)) for _ in range(frames))
        sound = None if index == 0 else rng.integers(-9000, 9000, (channels, samples), np.int16)
        texts = (Text(f"word{index} there", "verbal"), Text(f"a thing {index}", "nonverbal"))
        record = SourceRecord(f"clip{index}", "none.mp4", "train", texts)
        rows.append(encode_row(record, Span(pictures, sound), JPEG_QUALITY))
    lance.write_dataset(pa.Table.from_pylist(rows, SCHEMA), str(path), mode=mode, data_storage_version=STORAGE)
    return path
