"""Limits within which the files and sentences of strangers are read: environment variables in, a config out.

Each field is set by the variable `CLIP4VLA_` and its name in capitals, such as `CLIP4VLA_MAX_BYTES`.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from clip4vla.config import Large, MediaLimits, Positive, Seconds
from clip4vla.utils.variables import PREFIX, unread

log = logging.getLogger(__name__)
Port = Annotated[int, Field(ge=1, le=65535)]


class ReaderLimits(MediaLimits):
    """What a file may demand, stricter than for files that are trusted, and what its readers may take."""

    max_bytes: Large = 500_000_000
    max_duration_s: Seconds = 600.0
    max_decode_s: Seconds = 20.0
    """Time in which a file is read; a reader that takes longer is killed."""
    wait_s: Seconds = 2.0
    """When all readers have been at their files for so long, further files are refused until one is done."""
    memory_bytes: Annotated[int, Field(ge=2**30, le=2**50)] = 4 * 2**30
    """Address space of a reader."""
    readers: Annotated[int, Field(ge=1, le=256)] = 2
    """Processes that read files."""


class ServingLimits(ReaderLimits):
    """What a request to the served model may ask for."""

    media_root: Path | None = None
    """Folder whose files may be named; None: no file may be."""
    max_rows: Positive = 256
    """Rows of a request."""
    max_characters: Positive = 10_000
    """Characters of a text."""
    metrics_port: Port | None = None
    """Port of the Prometheus metrics, on the loopback interface; None: they are not served."""

    @classmethod
    def from_environment(cls, variables: Mapping[str, str] = os.environ) -> "ServingLimits":
        """The limits that `variables` set, the defaults of the others; variables that nothing reads are logged.

        Raises:
            ValueError: a value is out of range, or `media_root` is no folder.
        """
        for sentence in unread(variables):
            log.warning("%s", sentence)
        names = {name: f"{PREFIX}{name.upper()}" for name in cls.model_fields}
        try:
            limits = cls.model_validate_strings({n: variables[v] for n, v in names.items() if variables.get(v)})
        except ValidationError as error:
            [first, *_] = error.errors()
            raise ValueError(f"{names[str(first['loc'][0])]}: {first['msg']}, not {first['input']!r}") from None
        if limits.media_root is not None and not limits.media_root.is_dir():
            raise ValueError(f"{names['media_root']}: there is no folder {limits.media_root}")
        return limits
