"""SHA-256 of files, bytes, text and JSON, in hexadecimal digits: what tells one content from another.

The digests are stored (in run results, scores, the registry and partial data sets), so they must never change for the
same content.
"""

import hashlib
import json
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DIGITS = 64
"""Of a full SHA-256. 16 are enough to tell the versions of a project from each other."""
PIECE = 1 << 20
"""Bytes of a file that are read at a time."""


def hash_bytes(parts: Iterable[bytes], digits: int = DIGITS) -> str:
    """The hash of all parts, one after the other; where one ends and the next begins makes no difference."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part)
    return found.hexdigest()[:digits]


def hash_text(text: str, digits: int = DIGITS) -> str:
    """The hash of the UTF-8 bytes; a lone surrogate, as in the name of a file that is not UTF-8, is kept."""
    return hash_bytes([text.encode(errors="surrogatepass")], digits)


def read_pieces(path: Path) -> Iterator[bytes]:
    """The content of a file, in pieces that are hashed one after the other."""
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            yield piece


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


class HashSet:
    """A set of texts that keeps 63 bits of each: 12 to 24 bytes a text, however long it is, and 36 while it grows.

    n different texts have different hashes but with a probability of n^2 / 2^64: 0.00007 for 36 million.
    """

    def __init__(self) -> None:
        self._slots = array("q", bytes(8 << 10))
        """0 where there is none; a text is in the first free slot from that of its hash on."""
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __contains__(self, text: str) -> bool:
        found = hash_to_int64(text) or 1
        return self._slots[self._find(found)] == found

    def add(self, text: str) -> bool:
        """Add `text`; whether it was not there before."""
        found = hash_to_int64(text) or 1
        slot = self._find(found)
        if self._slots[slot] == found:
            return False
        self._slots[slot] = found
        self._count += 1
        if 3 * self._count > 2 * len(self._slots):
            self._grow()
        return True

    def _find(self, found: int) -> int:
        """The slot that has the hash, or the free one where it belongs."""
        slots = self._slots
        last = len(slots) - 1
        slot = found & last
        while slots[slot] not in (0, found):
            slot = (slot + 1) & last
        return slot

    def _grow(self) -> None:
        before = self._slots
        self._slots = array("q", bytes(2 * before.itemsize * len(before)))
        for found in before:
            if found:
                self._slots[self._find(found)] = found
