"""What comes out of the package of stamps, and what of it is refused."""

import tarfile
from pathlib import Path, PurePosixPath

import pytest

from clip4vla.corpora.stampscenes.archive import read_members, read_version
from clip4vla.rehearsal.stamp_package import FOLDER, NAMES, write_stamp_package


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def test_members_and_version_are_read(package: Path) -> None:
    assert read_version(package) == ("tuxpaint-stamps-default", "2022.06.04-1")
    members = read_members(package, lambda path: path.suffix == ".txt")
    assert sorted(members) == sorted(PurePosixPath(f"{FOLDER}/{name}.txt") for name in NAMES)
    assert members[PurePosixPath(f"{FOLDER}/cat.txt")].startswith(b"A cat.")


@pytest.mark.parametrize(
    ("unsafe", "complaint"),
    [
        (member("/etc/passwd"), "leads out"),
        (member("./usr/../../etc/passwd"), "leads out"),
        (member("../outside.txt"), "leads out"),
        (member("./link.txt", tarfile.SYMTYPE, "/etc/passwd"), "neither a file nor a directory"),
        (member("./hard.txt", tarfile.LNKTYPE, "./usr/share/x"), "neither a file nor a directory"),
        (member("./null", tarfile.CHRTYPE), "neither a file nor a directory"),
        (member("./disk", tarfile.BLKTYPE), "neither a file nor a directory"),
        (member("./pipe", tarfile.FIFOTYPE), "neither a file nor a directory"),
    ],
)
def test_a_member_that_has_no_business_there_is_refused(tmp_path: Path, unsafe, complaint: str) -> None:
    deb = write_stamp_package(tmp_path / "bad.deb", extra=(unsafe,))
    with pytest.raises(ValueError, match=complaint):
        read_members(deb, lambda _: False)  # even if it is not selected


def test_symbolic_links_are_passed_over_where_a_package_has_some(tmp_path: Path) -> None:
    deb = write_stamp_package(tmp_path / "links.deb", extra=(member("./link.txt", tarfile.SYMTYPE, "/etc/passwd"),))
    assert len(read_members(deb, lambda path: path.suffix == ".txt", skip_symlinks=True)) == len(NAMES)
    hard = write_stamp_package(tmp_path / "hard.deb", extra=(member("./hard.txt", tarfile.LNKTYPE, "./usr/share/x"),))
    with pytest.raises(ValueError, match="neither a file nor a directory"):
        read_members(hard, lambda _: False, skip_symlinks=True)


def test_a_directory_is_no_harm(tmp_path: Path) -> None:
    deb = write_stamp_package(tmp_path / "fine.deb", extra=(member("./usr/share/doc", tarfile.DIRTYPE),))
    assert len(read_members(deb, lambda path: path.suffix == ".txt")) == len(NAMES)


@pytest.mark.parametrize("content", [b"", b"no archive at all", b"!<arch>\n"])
def test_what_is_no_package_says_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "not.deb"
    path.write_bytes(content)
    for read in (read_version, lambda p: read_members(p, lambda _: True)):
        with pytest.raises(ValueError, match=r"not\.deb"):
            read(path)


def test_a_package_that_breaks_off_says_so(tmp_path: Path, package: Path) -> None:
    data = package.read_bytes()
    for share in (0.3, 0.6, 0.9):
        path = tmp_path / "half.deb"
        path.write_bytes(data[: int(share * len(data))])
        with pytest.raises(ValueError, match=r"half\.deb"):
            read_members(path, lambda _: True)


def test_a_damaged_package_says_so(tmp_path: Path, package: Path) -> None:
    for place in range(200, package.stat().st_size - 100, 997):
        data = bytearray(package.read_bytes())
        data[place : place + 4] = b"\xff\x00\xff\x00"
        path = tmp_path / "damaged.deb"
        path.write_bytes(bytes(data))
        try:
            read_version(path), read_members(path, lambda _: True)
        except ValueError as error:
            assert "damaged.deb" in str(error)  # noqa: PT017
