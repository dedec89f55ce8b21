"""SHA-256 of files, bytes, text and JSON, in hexadecimal digits: what tells one content from another.

The digests are stored (in run results, scores, the registry and partial data sets), so they must never change for the
same content.
"""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

DIGITS = 64
"""Of a full SHA-256. 16 are enough to tell the versions of a project from each other."""


def hash_bytes(parts: Iterable[bytes], digits: int = DIGITS) -> str:
    """The hash of all parts, one after the other; where one ends and the next begins makes no difference."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:digits]


def hash_text(text: str, digits: int = DIGITS) -> str:
    """The hash of the UTF-8 bytes; a lone surrogate, as in the name of a file that is not UTF-8, is kept."""
    return hash_bytes([text.encode(errors="surrogatepass")], digits)


def hash_to_int64(text: str) -> int:
    """A non-negative 63-bit hash of the text, the same in every process."""
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()) >> 1


def hash_json(tree: Any, digits: int = DIGITS) -> str:
    """The hash of the tree as JSON with sorted keys."""
    return hash_text(json.dumps(tree, sort_keys=True), digits)


def hash_file(path: Path) -> str:
    """The hash of a file's content, read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(paths: Iterable[Path], digits: int = DIGITS) -> str:
    """The hash of the names and contents of several files, in this order; their directories make no difference."""
    return hash_text("".join(f"{path.name}\n{hash_file(path)}\n" for path in paths), digits)
