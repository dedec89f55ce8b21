"""Files of any origin: what is read, what is refused and why, and that nothing blocks the others."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip4vla.clips.format import decode_frame, decode_row
from clip4vla.inference.limits import ReaderLimits, ServingLimits
from clip4vla.inference.media_reader import MediaReader
from clip4vla.inference.media_row import ReadRequest, locate, read_row, read_row_within
from clip4vla.media.source import MediaError
from tests.inference.tiny import CLIPS, RATE, write_video

LIMITS = ReaderLimits()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "one.mp4", 1)
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "list.mp4").write_text(f"ffconcat version 1.0\nfile {folder}/one.mp4\n")
    (folder / "list.m3u8").write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{folder}/one.mp4\n")
    os.mkfifo(folder / "pipe.mp4")
    Image.radial_gradient("L").resize((80, 40)).convert("RGB").save(folder / "picture.png")
    return folder


def request(folder: Path, name: str, pictures: bool = False) -> ReadRequest:
    return ReadRequest(root=folder, name=name, clips=CLIPS, sample_rate=RATE, pictures=pictures)


def reason(call: Callable[[], object]) -> str:
    with pytest.raises(MediaError) as found:
        call()
    return found.value.reason


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ({}, None),
        ({"max_bytes": 1000}, "too_large"),
        ({"max_pixels": 64 * 64 - 1}, "too_large"),
        ({"max_duration_s": 0.9}, "too_long"),
    ],
)
def test_a_file_is_read_within_each_limit(folder: Path, limit: dict[str, float], expected: str | None) -> None:
    limits = LIMITS.model_copy(update=limit)
    if expected is None:
        assert read_row_within(request(folder, "one.mp4"), limits) == read_row(folder / "one.mp4", CLIPS, RATE)
    else:
        assert reason(lambda: read_row_within(request(folder, "one.mp4"), limits)) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("list.mp4", "not_media"),
        ("list.m3u8", "not_media"),
        ("picture.png", "too_short"),
        ("broken.mp4", "corrupt"),
        ("pipe.mp4", "missing"),
        ("nowhere.mp4", "missing"),
        ("a\0b", "missing"),
        ("x" * 5000, "missing"),
        ("http:example.mp4", "missing"),
        ("", "missing"),
        ("../outside.mp4", "forbidden"),
        ("/etc/passwd", "forbidden"),
        ("/proc/self/fd/0", "forbidden"),
    ],
)
def test_what_is_no_media_file_of_the_folder_is_refused(folder: Path, name: str, expected: str) -> None:
    assert reason(lambda: read_row_within(request(folder, name), LIMITS)) == expected


def test_links_are_resolved_before_the_folder_is_compared(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "there").symlink_to(folder)
    assert locate(tmp_path / "there", "one.mp4") == folder / "one.mp4"
    assert reason(lambda: locate(tmp_path, "there/one.mp4")) == "forbidden"


def test_a_picture_becomes_a_video_that_shows_nothing_else_where_pictures_are_taken(folder: Path) -> None:
    clip = decode_row(read_row_within(request(folder, "picture.png", pictures=True), LIMITS))
    assert clip.audio is None
    assert len(clip.frames) == CLIPS.frames
    assert len(set(clip.frames)) == 1
    shown = decode_frame(clip.frames[0])
    assert shown.shape == (CLIPS.size, 2 * CLIPS.size, 3)
    expected = Image.open(folder / "picture.png").resize((2 * CLIPS.size, CLIPS.size), Image.Resampling.BICUBIC)
    assert np.abs(shown.astype(int) - np.asarray(expected).astype(int)).max() < 20
    small = LIMITS.model_copy(update={"max_pixels": 3199})
    assert reason(lambda: read_row_within(request(folder, "picture.png", pictures=True), small)) == "too_large"


@pytest.fixture
def reader() -> Iterator[MediaReader]:
    reader = MediaReader(LIMITS.model_copy(update={"readers": 1, "wait_s": 30.0}))
    yield reader
    reader.close()


def test_a_process_reads_the_same_and_names_files_as_they_were_named(folder: Path, reader: MediaReader) -> None:
    found = reader.read(request(folder, "one.mp4"))
    expected = decode_row(read_row(folder / "one.mp4", CLIPS, RATE))
    assert found.frames == expected.frames
    assert found.audio is not None
    assert expected.audio is not None
    np.testing.assert_array_equal(found.audio, expected.audio)
    with pytest.raises(MediaError, match=r"^corrupt: broken\.mp4: ") as refused:
        reader.read(request(folder, "broken.mp4"))
    assert str(folder) not in str(refused.value)
    assert reader.read(request(folder, "one.mp4")).frames == expected.frames


BLOCKING = """
import sys
from multiprocessing.connection import Connection
from clip4vla.inference import media_reader
def read(request, limits):
    if request.name == "blocks": open(request.root / "pipe.mp4").read()
    if request.name == "crashes": import os; os.abort()
    if request.name == "takes memory": bytearray(2**40)
    return original(request, limits)
original, media_reader.read_row_within = media_reader.read_row_within, read
media_reader.main()
"""


@pytest.fixture
def strange(monkeypatch: pytest.MonkeyPatch) -> Callable[..., MediaReader]:
    """Readers whose processes block, crash or take memory at files of these names."""
    start = subprocess.Popen

    def of(command: list[str], **options: object) -> object:
        return start([sys.executable, "-c", BLOCKING, *command[3:]], **options)  # type: ignore[call-overload]

    def make(**limits: float) -> MediaReader:
        monkeypatch.setattr(subprocess, "Popen", of)
        return MediaReader(LIMITS.model_copy(update=limits))

    return make


def test_a_process_that_fails_is_replaced(folder: Path, strange: Callable[..., MediaReader]) -> None:
    reader = strange(readers=1, max_decode_s=1.0)
    for name, expected in {"crashes": "crashed", "takes memory": "too_large", "blocks": "timeout"}.items():
        assert reason(lambda name=name: reader.read(request(folder, name))) == expected  # type: ignore[misc]
        assert len(reader.read(request(folder, "one.mp4")).frames) == CLIPS.frames
    reader.close()


def test_many_requests_for_a_file_that_blocks_are_refused_while_others_wait_their_turn(
    folder: Path, strange: Callable[..., MediaReader]
) -> None:
    reader = strange(readers=1, max_decode_s=4.0, wait_s=0.5)
    assert reader.read(request(folder, "one.mp4")).frames
    with ThreadPoolExecutor(42) as pool:
        start = time.monotonic()
        found = list(pool.map(lambda _: reason(lambda: reader.read(request(folder, "blocks"))), range(42)))
        assert sorted(found) == [*["busy"] * 41, "timeout"]
        assert time.monotonic() - start < 30
        reader.limits = LIMITS.model_copy(update={"wait_s": 60.0})  # a busy machine starts the new process slowly
        assert all(clip.frames for clip in pool.map(lambda _: reader.read(request(folder, "one.mp4")), range(8)))
    reader.close()


def test_limits_are_read_from_the_environment(tmp_path: Path) -> None:
    limits = ServingLimits.from_environment({"CLIP4VLA_MEDIA_ROOT": str(tmp_path), "CLIP4VLA_MAX_BYTES": "7"})
    assert (limits.media_root, limits.max_bytes, limits.max_rows) == (tmp_path, 7, ServingLimits().max_rows)
    with pytest.raises(ValueError, match=r"^CLIP4VLA_MAX_ROWS: Input should be greater than 0, not '0'$"):
        ServingLimits.from_environment({"CLIP4VLA_MAX_ROWS": "0"})
    for name, value in (("READERS", "100000"), ("MEMORY_BYTES", "1"), ("MAX_DECODE_S", "inf")):
        with pytest.raises(ValueError, match=f"^CLIP4VLA_{name}: Input should be "):
            ServingLimits.from_environment({f"CLIP4VLA_{name}": value})
    with pytest.raises(ValueError, match=r"^CLIP4VLA_MEDIA_ROOT: there is no folder /nowhere$"):
        ServingLimits.from_environment({"CLIP4VLA_MEDIA_ROOT": "/nowhere"})
