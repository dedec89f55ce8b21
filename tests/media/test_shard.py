"""Tar files: where members are, what is wrong with a damaged or hostile one, and decoding without unpacking."""

import io
import os
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip4vla.config import MediaLimits
from clip4vla.media import shard as module
from clip4vla.media.decode import LIMITS, decode, duration_s
from clip4vla.media.shard import Fault, Member, MemberFile, find_member, find_shard, read_members
from clip4vla.media.source import MediaError
from tests.media.sample import write_media
from tests.shards import read_shard, special, write_shard, write_tar

BLOCK = 512


def faults(path: Path) -> list[tuple[str, str]]:
    return [(found.name, found.reason) for found in read_members(path) if isinstance(found, Fault)]


def content(path: Path) -> dict[str, bytes]:
    data = path.read_bytes()
    members = [found for found in read_members(path) if isinstance(found, Member)]
    return {member.name: data[member.offset : member.offset + member.size] for member in members}


def test_members_are_what_the_library_reads(tmp_path: Path) -> None:
    samples = {f"{i:04d}": {"mp4": bytes([i]) * (i * 300), "txt": f"text {i}", "json": {"i": i}} for i in range(5)}
    path = write_shard(tmp_path / "0.tar", samples)
    expected = {f"{key}.{name}": data for key, sample in read_shard(path).items() for name, data in sample.items()}
    assert content(path) == expected
    assert faults(path) == []


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_layout_of_tar_is_read(layout: int, tmp_path: Path) -> None:
    long = "folder/" * 16 + "b" * 90 + ".txt"
    names = ["./a.txt", "folder//c.txt", long, *([] if layout == tarfile.USTAR_FORMAT else [f"é{'x' * 150}.txt"])]
    path = write_tar(tmp_path / "0.tar", *((name, name.encode()) for name in names), layout=layout)
    assert faults(path) == []
    assert [data.decode() for data in content(path).values()] == names
    assert list(content(path))[:2] == ["a.txt", "folder/c.txt"]


def test_a_folder_in_a_shard_is_no_member(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", special("folder", tarfile.DIRTYPE), ("folder/a.txt", b"a"))
    assert (content(path), faults(path)) == ({"folder/a.txt": b"a"}, [])


@pytest.mark.parametrize(
    ("member", "name", "reason"),
    [
        (("../a.mp4", b"x"), "../a.mp4", "bad_name"),
        (("folder/../../a.mp4", b"x"), "folder/../../a.mp4", "bad_name"),
        (("/etc/passwd", b"x"), "/etc/passwd", "bad_name"),
        (("a\nb.mp4", b"x"), "a\nb.mp4", "bad_name"),
        (("a\x1b[2J.mp4", b"x"), "a\x1b[2J.mp4", "bad_name"),
        (("\udcff.mp4", b"x"), "\udcff.mp4", "bad_name"),
        (("./.", b"x"), "./.", "bad_name"),
        (("n" * 5000, b"x"), "n" * 1024, "bad_name"),
        (special("a.mp4", tarfile.SYMTYPE, "/etc/passwd"), "a.mp4", "not_a_file"),
        (special("a.mp4", tarfile.LNKTYPE, "b.txt"), "a.mp4", "not_a_file"),
        (special("a.mp4", tarfile.CHRTYPE), "a.mp4", "not_a_file"),
        (special("a.mp4", tarfile.BLKTYPE), "a.mp4", "not_a_file"),
        (special("a.mp4", tarfile.FIFOTYPE), "a.mp4", "not_a_file"),
        (special("a.mp4", b"Z"), "a.mp4", "not_a_file"),
    ],
)
@pytest.mark.parametrize("layout", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_hostile_member_is_a_fault_and_its_neighbours_are_read(member, name, reason, layout, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", ("b.txt", b"b"), member, ("c.txt", b"c"), layout=layout)
    assert faults(path) == [(name, reason)]
    assert content(path) == {"b.txt": b"b", "c.txt": b"c"}


def test_a_sparse_file_of_gnu_tar_is_a_fault(tmp_path: Path) -> None:
    info = tarfile.TarInfo("a.mp4")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.name": "a.mp4"}
    path = write_tar(tmp_path / "0.tar", (info, b"x"))
    assert faults(path) == [("a.mp4", "not_a_file")]


def pax(name: str, **records: str) -> bytes:
    """A member `name` of one byte, with a pax header."""
    info = tarfile.TarInfo(name)
    info.size = 1
    info.pax_headers = records
    return info.tobuf(tarfile.PAX_FORMAT) + b"x".ljust(BLOCK, b"\0")


END = bytes(2 * BLOCK)


@pytest.mark.parametrize(
    ("data", "reason", "detail"),
    [
        (b"", "truncated", "without an end mark"),
        (b"no tar" * 200, "not_tar", "header"),
        (b"\x1f\x8b" + bytes(600), "compressed", "gzip"),
        (b"BZh9" + bytes(600), "compressed", "bzip2"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "compressed", "zstandard"),
        (pax("a.txt", comment="c" * 70_000) + END, "corrupt", "a header of"),
        (pax("a.txt", size="-5") + END, "corrupt", "for a number"),
        (pax("a.txt", size="9" * 18) + END, "truncated", "bytes are stated"),
        (pax("a.txt", comment="c").replace(b"13 comment=c", b"99 comment=c") + END, "corrupt", "damaged"),
        (pax("a.txt", comment="c").replace(b"13 comment=c", b"-3 comment=c") + END, "corrupt", "for a number"),
        (pax("a.txt", comment="c").replace(b"13 comment=c", b"00 comment=c") + END, "corrupt", "damaged"),
        (tarfile.TarInfo("a.txt").tobuf() + b"junk" * 200, "corrupt", "no header at byte 512"),
        (tarfile.TarInfo("a.txt").tobuf() + END + tarfile.TarInfo("b.txt").tobuf(), "corrupt", "follows the end mark"),
    ],
)
def test_damage_is_a_fault_that_says_where(data: bytes, reason: str, detail: str, tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(data)
    (fault,) = (found for found in read_members(path) if isinstance(found, Fault))
    assert fault.reason == reason
    assert detail in fault.detail


@pytest.mark.parametrize("left", [900, 2 * BLOCK, 3 * BLOCK + 100])
def test_a_truncated_shard_keeps_its_complete_members(left: int, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "0.tar", ("a.txt", b"a" * 300), ("b.txt", b"b" * 900), ("c.txt", b"c"))
    path.write_bytes(path.read_bytes()[:left])
    assert set(content(path)) == {"a.txt"}
    assert [reason for _, reason in faults(path)][-1:] == ["truncated"]


def test_a_shard_that_is_no_file_is_a_fault(tmp_path: Path) -> None:
    assert faults(tmp_path / "0.tar") == [("", "unreadable")]


def test_a_path_through_a_tar_file_names_a_member(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "x.tar" / "0.tar", ("b.tar/a.mp4", b"first"), ("b.tar/a.mp4", b"second"))
    assert find_shard(shard) is None
    assert find_shard(shard / "b.tar" / "a.mp4") == shard
    found = find_member(shard / "b.tar" / "a.mp4")
    assert found is not None
    assert shard.read_bytes()[found[1].offset :][:5] == b"first"
    for name in ("a.mp4", "b.tar", "n" * 300, "../0.tar"):
        with pytest.raises(OSError, match="has no member"):
            find_member(shard / name)


def test_a_shard_that_was_replaced_is_read_again(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", ("a.mp4", b"first"))
    assert find_member(shard / "a.mp4") is not None
    write_tar(shard, ("z.txt", b"z" * 9000), ("a.mp4", b"second"))
    found = find_member(shard / "a.mp4")
    assert found is not None
    assert found[1].size == 6


def test_nothing_outside_the_member_can_be_read(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "0.tar", ("a.mp4", b"before"), ("b.mp4", b"0123456789"), ("c.mp4", b"after"))
    member = next(found for found in read_members(shard) if isinstance(found, Member) and found.name == "b.mp4")
    with MemberFile(shard, member, time.monotonic() + 60) as file:
        assert file.read() == b"0123456789"
        assert file.read(1) == b""
        assert file.seek(-3, os.SEEK_END) == 7
        assert file.read(100) == b"789"
        assert file.seek(2) == 2
        assert file.seek(1, os.SEEK_CUR) == 3
        assert (file.read(2), file.tell()) == (b"34", 5)
        assert file.seek(50) == 50
        assert file.read(1) == b""
        with pytest.raises(OSError, match="before the beginning"):
            file.seek(-1)
    with MemberFile(shard, member, time.monotonic() - 1) as file, pytest.raises(TimeoutError):
        file.read(1)


KINDS = [
    ("a.mp4", "libx264", "aac"),
    ("a.webm", "libvpx", "libopus"),
    ("a.mkv", "libx264", "pcm_s16le"),
    ("a.ts", "libx264", "aac"),
    ("a.wav", None, "pcm_s16le"),
    ("a.flac", None, "flac"),
    ("a.mp3", None, "mp3"),
    ("a.ogg", None, "libopus"),
]


@pytest.mark.parametrize(("name", "video", "audio"), KINDS)
def test_a_member_decodes_as_the_file_does(name: str, video: str | None, audio: str, tmp_path: Path) -> None:
    file = write_media(tmp_path / name, video, audio)
    shard = write_shard(tmp_path / "0.tar", {"x": {"txt": "x"}, "a": {file.suffix[1:]: file.read_bytes()}})
    settings = {"frames": 4, "short_side": 32, "sample_rate": 8000}
    of_file, of_member = (decode(path, 0.3, 1.7, **settings) for path in (file, shard / name))
    assert [a.tobytes() for a in of_member.frames] == [a.tobytes() for a in of_file.frames]
    assert of_file.audio is not None
    assert of_member.audio is not None
    np.testing.assert_array_equal(of_member.audio, of_file.audio)
    assert duration_s(shard / name) == duration_s(file)


def test_limits_and_formats_hold_for_members(tmp_path: Path) -> None:
    media = write_media(tmp_path / "a.mp4").read_bytes()
    playlist = f"#EXTM3U\n#EXTINF:2,\n{tmp_path / 'a.mp4'}\n".encode()
    script = f"ffconcat version 1.0\nfile {tmp_path / 'a.mp4'}\n".encode()
    shard = write_shard(
        tmp_path / "0.tar",
        {"a": {"mp4": media}, "list": {"mp4": playlist}, "script": {"mp4": script}, "cut": {"mp4": media[:2000]}},
    )

    def reason(name: str, **limits: float) -> str:
        with pytest.raises(MediaError) as found:
            decode(
                *(shard / name, 0.0, None),
                **{"frames": 2, "short_side": 32, "sample_rate": 8000},
                limits=MediaLimits(**limits) if limits else LIMITS,
            )
        assert name.split(".")[0] in found.value.detail
        return found.value.reason

    assert reason("a.mp4", max_bytes=len(media) - 1) == "too_large"
    assert reason("a.mp4", max_pixels=100) == "too_large"
    assert reason("a.mp4", max_duration_s=1) == "too_long"
    assert reason("a.mp4", max_decode_s=1e-9) == "too_slow"
    assert {reason("list.mp4"), reason("script.mp4"), reason("cut.mp4")} <= {"not_media", "corrupt"}
    assert reason("b.mp4") == "missing"


def test_only_so_many_members_are_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard = write_tar(tmp_path / "0.tar", *((f"{i}.mp4", b"x") for i in range(5)))
    monkeypatch.setattr(module, "MEMBER_LIMIT", 3)
    assert find_member(shard / "2.mp4") is not None
    with pytest.raises(FileNotFoundError):
        find_member(shard / "3.mp4")


def good_shard() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.txt", "é" * 80 + ".mp4", "folder/c.json"):
            info = tarfile.TarInfo(name)
            info.size = 700
            tar.addfile(info, io.BytesIO(name.encode().ljust(700, b".")))
    return buffer.getvalue()


GOOD = good_shard()
CHANGES = st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4)


@given(changes=CHANGES, fixes_sums=st.booleans(), left=st.integers(0, len(GOOD)) | st.none())
@settings(max_examples=200, deadline=None)
def test_whatever_is_in_a_shard_gives_members_inside_it_or_faults(changes, fixes_sums, left) -> None:
    data = bytearray(GOOD)
    for place, odd in changes:
        data[place : place + len(odd)] = odd
    if fixes_sums:  # as somebody would who means to get through
        for start in range(0, len(data) - BLOCK, BLOCK):
            if data[start + 257 : start + 262] == b"ustar":
                data[start + 148 : start + 156] = b" " * 8
                data[start + 148 : start + 155] = b"%06o\0" % sum(data[start : start + BLOCK])
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "0.tar")
        path.write_bytes(data[:left])
        found = list(read_members(path))
    assert len(found) <= len(GOOD) // BLOCK + 1
    for item in found:
        if isinstance(item, Member):
            assert BLOCK <= item.offset <= item.offset + item.size <= len(data)
            assert ".." not in item.name.split("/")
        else:
            assert item.reason in {"not_tar", "compressed", "corrupt", "truncated", "bad_name", "not_a_file"}
            assert item.detail
