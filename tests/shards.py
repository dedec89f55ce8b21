"""Tar shards, written by the library whose layout they have."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import webdataset

Samples = Mapping[str, Mapping[str, Any]]
"""By key, what the library makes members of, by suffix: bytes, texts, and what JSON holds."""


def write_shard(path: Path, samples: Samples) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, webdataset.TarWriter(file, mtime=0) as writer:
        for key, members in samples.items():
            writer.write({"__key__": key, **members})
    return path


def read_shard(path: Path) -> dict[str, dict[str, bytes]]:
    """The samples as the library reads them: members by suffix, by key."""
    samples = webdataset.WebDataset(str(path), shardshuffle=False, empty_check=False)
    return {
        sample["__key__"]: {name: value for name, value in sample.items() if not name.startswith("__")}
        for sample in samples
    }


def write_tar(path: Path, *members: tuple[str | tarfile.TarInfo, bytes], layout: int = tarfile.PAX_FORMAT) -> Path:
    """A tar file of members that the library would not write."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=layout) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    """A link or a device."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""
