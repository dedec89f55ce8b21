"""A tar file in, the places of its members out, so that media are decoded where they lie and nothing is unpacked.

A path that goes through a tar file, `00000.tar/000012.mp4`, names a member of it. Only headers are read to find one. Of
a shard by a stranger no more than its size is believed: links, devices and sparse files are no members, names stay
below the shard, and an extended header (pax, GNU) is read up to HEADER_LIMIT bytes. `tarfile` itself isn't asked for
these: it reads them whole, however long they say they are.
"""

import errno
import io
import math
import os
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

from clip4vla.utils.files import file_state

SUFFIX = ".tar"
BLOCK = tarfile.BLOCKSIZE
HEADER_LIMIT = 1 << 16
"""Bytes of a pax header, or of a long name of GNU tar."""
NAME_LIMIT = 1024
"""Characters of a name."""
MEMBER_LIMIT = 1_000_000
"""Members that are looked up in a shard; what comes after is not found."""
PLACES_KEPT = 4
"""Shards whose members a process remembers."""
COMPRESSIONS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}
"""By the first bytes of a file."""
OTHER_KINDS = {
    tarfile.LNKTYPE: "a link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}
LONG_NAMES = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
PAX_HEADERS = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


@dataclass(frozen=True, slots=True)
class Member:
    """A file in a shard."""

    name: str
    """Without `./` and doubled slashes."""
    offset: int
    """Where its bytes begin in the shard."""
    size: int


@dataclass(frozen=True)
class Fault:
    """What of a shard can't be used, and why."""

    name: str
    """Of the member; empty where it is the shard itself, from some place on."""
    reason: str
    detail: str


class _DamageError(Exception):
    """Nothing after this can be found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason
        self.detail = detail


def read_members(shard: Path) -> Iterator[Member | Fault]:
    """The files in a shard and what of it can't be used, in the order of the shard; folders in it are left out.

    Faults are `not_tar`, `compressed`, `corrupt`, `truncated` (also where only the end mark is missing), `bad_name`,
    `not_a_file` and `unreadable`.
    """
    try:
        with shard.open("rb") as file:
            yield from _Headers(file).members()
    except _DamageError as damage:
        yield Fault("", damage.reason, damage.detail)
    except OSError as error:
        yield Fault("", "unreadable", error.strerror or str(error))


class _Headers:
    """The headers of a shard, one after the other."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._size = os.fstat(file.fileno()).st_size
        self._position = 0
        self._global: dict[str, bytes] = {}
        self._extended: dict[str, bytes] = {}
        """What pax headers and long names state of the next member."""

    def members(self) -> Iterator[Member | Fault]:
        while (info := self._next_header()) is not None:
            start = self._position
            if info.type in LONG_NAMES or info.type in PAX_HEADERS:
                self._extend(info)
                continue
            stated = self._global | self._extended
            self._extended = {}
            size = _whole_number(stated["size"]) if "size" in stated else info.size
            name = stated["path"].decode("utf-8", "surrogateescape") if "path" in stated else info.name
            found = _check(info, name, Member(canonical(name), start, size), stated)
            if info.isreg() or info.type not in tarfile.SUPPORTED_TYPES:
                assert found is not None  # it is no folder
                if start + size > self._size:
                    left = self._size - start
                    yield Fault(found.name, "truncated", f"{size:,} bytes are stated, {left:,} are left")
                    return
                self._skip(size)
            if found is not None:
                yield found

    def _next_header(self) -> tarfile.TarInfo | None:
        """The header at the present place; None at the end."""
        at = self._position
        block = self._read(BLOCK)
        if at == 0 and 0 < len(block) < BLOCK:
            raise self._no_header(at, block)
        if len(block) < BLOCK:
            raise _DamageError("truncated", f"it ends at byte {at + len(block):,} without an end mark")
        if not block.strip(b"\0"):
            self._check_end()
            return None
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.HeaderError as error:
            raise self._no_header(at, block) from error
        if info.size < 0:
            raise _DamageError("corrupt", f"the header at byte {at:,} states {info.size} bytes")
        return info

    def _no_header(self, at: int, block: bytes) -> _DamageError:
        if at > 0:
            return _DamageError("corrupt", f"no header at byte {at:,}, where one should be")
        for first, name in COMPRESSIONS.items():
            if block.startswith(first):
                return _DamageError("compressed", f"by {name}: decompress it, members of it can't be sought")
        return _DamageError("not_tar", "it doesn't begin with a header of a tar file")

    def _check_end(self) -> None:
        """Raise _DamageError where more than padding follows the end mark."""
        at = self._position
        while block := self._read(1 << 20):
            if block.strip(b"\0"):
                raise _DamageError("corrupt", f"more follows the end mark at byte {at:,}")

    def _extend(self, info: tarfile.TarInfo) -> None:
        if info.size > HEADER_LIMIT:
            raise _DamageError("corrupt", f"a header of {info.size:,} bytes at byte {self._position:,}")
        at = self._position
        data = self._read(info.size)
        self._position = at
        self._skip(info.size)
        if info.type == tarfile.GNUTYPE_LONGNAME:
            self._extended["path"] = data.rstrip(b"\0")
        elif info.type == tarfile.XGLTYPE:
            self._global |= _pax_records(data, at)
        elif info.type != tarfile.GNUTYPE_LONGLINK:
            self._extended |= _pax_records(data, at)

    def _read(self, size: int) -> bytes:
        self._file.seek(self._position)
        data = self._file.read(size)
        self._position += len(data)
        return data

    def _skip(self, size: int) -> None:
        """Go to the block after `size` bytes; not beyond the file, where a missing end mark would be found."""
        self._position = min(self._position + -(-size // BLOCK) * BLOCK, self._size)


def _pax_records(data: bytes, at: int) -> dict[str, bytes]:
    """`LENGTH KEY=VALUE` and a line feed, as POSIX has it."""
    records: dict[str, bytes] = {}
    position = 0
    while position < len(data):
        space = data.find(b" ", position, position + 8)
        length = _whole_number(data[position:space]) if space > 0 else 0
        record = data[space + 1 : position + length]
        key, equals, value = record.partition(b"=")
        if position + length > len(data) or not equals or not value.endswith(b"\n"):
            raise _DamageError("corrupt", f"the pax header at byte {at:,} is damaged")
        records[key.decode("utf-8", "replace")] = value[:-1]
        position += length
    return records


def _whole_number(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 18:
        raise _DamageError("corrupt", f"a pax header has {digits[:40]!r} for a number")
    return int(digits)


def _check(info: tarfile.TarInfo, name: str, member: Member, stated: dict[str, bytes]) -> Member | Fault | None:
    """The member, what is wrong with it, or None for a folder."""
    if info.isdir():
        return None
    if (problem := _problem_of(name)) is not None:
        return Fault(name[:NAME_LIMIT], "bad_name", problem)
    is_sparse = any(key.startswith("GNU.sparse") for key in stated)
    if is_sparse or not info.isreg() or info.type in OTHER_KINDS:
        kind = "a sparse file" if is_sparse else OTHER_KINDS.get(info.type, f"of type {info.type!r}")
        return Fault(member.name, "not_a_file", f"it is {kind}")
    return member


def canonical(name: str) -> str:
    """`name` without `./` and doubled slashes."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _problem_of(name: str) -> str | None:
    """Why a member can't have this name."""
    if not canonical(name):
        return "it is empty"
    if len(name) > NAME_LIMIT:
        return f"it has {len(name):,} characters"
    if name.startswith("/") or ".." in name.split("/"):
        return "it leads out of the shard"
    if any(character < " " or character == "\x7f" for character in name):
        return "it has a control character"
    try:
        name.encode()
    except UnicodeEncodeError:
        return "it isn't UTF-8"
    return None


def find_shard(path: Path) -> Path | None:
    """The tar file that `path` goes through; None where it goes through folders only."""
    if SUFFIX not in str(path):  # all records of a corpus come here, and few corpora are shards
        return None
    return next((part for part in reversed(path.parents) if part.suffix == SUFFIX and part.is_file()), None)


def find_member(path: Path) -> tuple[Path, Member] | None:
    """The shard that `path` goes through, and the member of it that `path` names; None where there is no shard.

    Of several members of the name it is the first.

    Raises:
        OSError: the shard has no such member, or can't be read.
    """
    shard = find_shard(path)
    if shard is None:
        return None
    name = path.relative_to(shard).as_posix()
    member = _members_by_name(shard, tuple(file_state(shard) or ())).get(name)
    if member is None:
        raise FileNotFoundError(errno.ENOENT, f"{shard} has no member {name} that can be used")
    return shard, member


@lru_cache(maxsize=PLACES_KEPT)
def _members_by_name(shard: Path, state: tuple[int, ...]) -> dict[str, Member]:  # noqa: ARG001  # one that changed
    members: dict[str, Member] = {}
    for found in islice(read_members(shard), MEMBER_LIMIT):
        if isinstance(found, Member):
            members.setdefault(found.name, found)
    return members


def read_member(file: IO[bytes], member: Member) -> bytes:
    """All bytes of a member of an open shard.

    Raises:
        OSError: it can't be read.
    """
    file.seek(member.offset)
    return file.read(member.size)


class MemberFile(io.RawIOBase):
    """A member of a shard as a file to be read, of which nothing before and after the member can be read.

    Args:
        shard: the file that the member is in.
        member: where it is.
        until_s: when reading ends, by the monotonic clock.
        most: bytes that may be read before `forget` is called again.

    Raises:
        TimeoutError: in reading, after `until_s`.
        OverflowError: in reading, beyond `most`.
    """

    def __init__(self, shard: Path, member: Member, until_s: float, most: float = math.inf) -> None:
        super().__init__()
        self.name = f"file:{shard.absolute()}/{member.name}"
        """FFmpeg judges some formats by the suffix, too. No file of this name can be there."""
        self._member = member
        self._until_s = until_s
        self.most = most
        self._read = 0
        self._position = 0
        self._file = shard.open("rb", buffering=0)

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read as many bytes as there are, and as `buffer` takes."""
        if time.monotonic() > self._until_s:
            raise TimeoutError(errno.ETIMEDOUT, "it takes too long to read")
        view = memoryview(buffer)[: max(0, self._member.size - self._position)]
        count = os.preadv(self._file.fileno(), [view], self._member.offset + self._position) if view else 0
        self._position += count
        self._read += count
        if self._read > self.most:
            raise OverflowError(f"{self._read:,} bytes without anything in them")
        return count

    def forget(self) -> None:
        """Begin to count what is read again, because something was found in it."""
        self._read = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to `offset` from the beginning, the present place or the end of the member; return the place."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._member.size}[whence]
        if base + offset < 0:
            raise OSError(errno.EINVAL, "a place before the beginning")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        """The present place."""
        return self._position

    def close(self) -> None:
        """Close the shard."""
        self._file.close()
        super().close()
