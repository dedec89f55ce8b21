"""The members of a Debian package, read in one pass and never unpacked to disk.

A member that has no business in the archive (an absolute path, `..`, a link, a device) is refused: the package
is then not what it says. A package that has symbolic links by intention can be read without them.
"""

import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import arpy

UNREADABLE = (arpy.ArchiveFormatError, arpy.ArchiveAccessError, tarfile.TarError, lzma.LZMAError, zlib.error, EOFError)


@contextmanager
def _open_part(deb: Path, prefix: str) -> Iterator[tarfile.TarFile]:
    try:
        with arpy.Archive(str(deb)) as archive:
            archive.read_all_headers()
            name = next((n for n in archive.archived_files if n.startswith(prefix.encode())), None)
            if name is None:
                raise ValueError(f"{deb} has no {prefix}: it is not a Debian package")
            with tarfile.open(fileobj=archive.archived_files[name]) as tar:
                yield tar
    except UNREADABLE as error:
        raise ValueError(f"{deb} is not a readable Debian package: {error}") from error


def read_version(deb: Path) -> tuple[str, str]:
    """The package's name and version, from its control file.

    Raises:
        ValueError: not a Debian package.
    """
    with _open_part(deb, "control.tar") as tar:
        control = [member for member in tar if PurePosixPath(member.name) == PurePosixPath("control")]
        file = tar.extractfile(control[0]) if control else None
        lines = file.read().decode(errors="replace").splitlines() if file else []
    fields = dict(line.split(": ", 1) for line in lines if ": " in line)
    return fields.get("Package", ""), fields.get("Version", "")


def read_members(
    deb: Path, wanted: Callable[[PurePosixPath], bool], skip_symlinks: bool = False
) -> dict[PurePosixPath, bytes]:
    """The content of every regular file for whose path `wanted` is true.

    Args:
        skip_symlinks: symbolic links are passed over, not followed; otherwise they are refused.

    Raises:
        ValueError: not a Debian package, or a member is unsafe.
    """
    members: dict[PurePosixPath, bytes] = {}
    with _open_part(deb, "data.tar") as tar:
        for member in tar:
            if skip_symlinks and member.issym():
                continue
            path = _safe_path(member)
            if member.isfile() and wanted(path) and (file := tar.extractfile(member)):
                members[path] = file.read()
    return members


def _safe_path(member: tarfile.TarInfo) -> PurePosixPath:
    path = PurePosixPath(member.name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"unsafe member in the archive: {member.name!r} leads out of it")
    if not (member.isfile() or member.isdir()):
        raise ValueError(f"unsafe member in the archive: {member.name!r} is neither a file nor a directory")
    return path
