"""From an adapter's entries to a manifest: nothing vanishes, and every record names one file that is there."""

import csv
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip4vla.__main__ import main
from clip4vla.corpora import manifest, media_index
from clip4vla.corpora.base import cut_names, make_excerpt
from clip4vla.corpora.manifest import read_manifest, write_manifest
from clip4vla.corpora.media_index import MediaIndex, write_listing
from clip4vla.records import Reject, SourceRecord, Text
from clip4vla.utils import progress
from tests.corpora.conftest import SAMPLES


def touch(directory: Path, *names: str) -> Path:
    for name in names:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).touch()
    return directory


def record(name: str, *texts: str, media: str | None = None) -> SourceRecord:
    return SourceRecord(name, media or name, "train", tuple(Text(text) for text in texts))


def test_accepted_and_rejected_are_what_was_read(tmp_path: Path) -> None:
    media = touch(tmp_path / "media", "a.mp4", "b.mkv", "twice.mp4", "deep/twice.mkv", "deep/er/c.webm")
    entries = [
        record("a", "one", "  two  ", " "),
        record("b", " \n"),
        record("a", "again"),
        record("gone", "text"),
        record("c", "found in a folder"),
        record("a2", "text", media="a.mp4"),
        record("half", "text \ud800", media="a"),
        Reject("x", "x", "train", "unknown_split", "line 3 \ud800"),
    ]
    result = write_manifest(entries, media, tmp_path / "out")
    assert (result.accepted, dict(result.rejected)) == (
        3,
        {"no_text": 1, "duplicate": 1, "missing": 1, "bad_text": 1, "unknown_split": 1},
    )
    assert result.accepted + result.rejected.total() == len(entries)
    accepted = list(read_manifest(tmp_path / "out" / "manifest.parquet"))
    assert [(r.clip_id, r.media) for r in accepted] == [("a", "a.mp4"), ("c", "deep/er/c.webm"), ("a2", "a.mp4")]
    assert accepted[0].texts == (Text("one"), Text("two"))
    rejects = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert [reject["reason"] for reject in rejects] == ["no_text", "duplicate", "missing", "bad_text", "unknown_split"]


def test_long_work_shows_how_many_records_were_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)

    def entries() -> Iterator[SourceRecord]:
        yield record("a", "text")
        deadline, errors = time.monotonic() + 30, ""
        while "1 records  " not in errors:
            assert time.monotonic() < deadline, errors
            errors += capsys.readouterr().err
        yield record("b", "text")

    assert write_manifest(entries(), touch(tmp_path / "media", "a.mp4", "b.mp4"), tmp_path / "out").accepted == 2


def test_what_is_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "GROUP", 2)
    media = touch(tmp_path / "media", *(f"{i}.mp4" for i in range(5)))
    texts = (Text("said", "verbal"), Text("heard", "nonverbal"), Text("both, “quoted”\nand more"))
    records = [SourceRecord(str(i), f"{i}.mp4", "val", texts, i / 7, (i + 1) / 7 if i else None) for i in range(5)]
    for out in ("one", "two"):
        write_manifest(records, media, tmp_path / out)
    assert list(read_manifest(tmp_path / "one" / "manifest.parquet")) == records
    for name in ("manifest.parquet", "rejects.parquet"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_adapter_that_fails_leaves_the_last_manifest(tmp_path: Path) -> None:
    media = touch(tmp_path / "media", "a.mp4")
    write_manifest([record("a", "text")], media, tmp_path / "out")

    def failing():
        yield record("b", "text")
        raise ValueError("file.csv:3: broken")

    with pytest.raises(ValueError, match=r"file\.csv:3"):
        write_manifest(failing(), media, tmp_path / "out")
    assert [r.clip_id for r in read_manifest(tmp_path / "out" / "manifest.parquet")] == ["a"]


def test_a_fraction_of_rejects_can_be_too_much(tmp_path: Path) -> None:
    media = touch(tmp_path / "media", "a.mp4")
    entries = [record("a", "text"), record("gone", "text")]
    result = write_manifest(entries, media, tmp_path / "out")
    result.check(0.5)
    with pytest.raises(ValueError, match=r"1 accepted, 1 rejected \(missing 1\)"):
        result.check(0.49)
    with pytest.raises(ValueError, match="nothing was accepted"):
        write_manifest([], media, tmp_path / "out").check(1.0)


def test_the_first_rejects_are_listed_with_their_reasons(tmp_path: Path) -> None:
    media = touch(tmp_path / "media", "a.mp4")
    entries = [record("a", "text"), *(record(f"gone{index}", "text") for index in range(7))]
    result = write_manifest(entries, media, tmp_path / "out")
    assert result.summary().splitlines() == [
        "1 accepted, 7 rejected (missing 7)",
        *(f"  gone{index}: missing, no media file gone{index}[.*]" for index in range(5)),
        "  and 2 more, in rejects.parquet",
    ]
    with pytest.raises(ValueError, match=r"gone0: missing(.|\n)*repair these or(.|\n)*clips\.max_reject_fraction"):
        result.check(0.5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.mp4", ["a.mp4"]),  # a path
        ("./a.mp4", ["a.mp4"]),
        ("a", ["a.mp4"]),  # a path without its suffix wins over a file in a folder
        ("x/a", ["x/a.mp4"]),
        ("b", ["x/b.webm"]),  # a name in any folder
        ("b.webm", ["x/b.webm"]),
        ("v1.5", ["v1.5.mkv"]),  # an id with dots
        ("v1", []),
        ("V", ["V.MP4"]),
        ("notes", []),  # notes beside the media are none
        ("notes.json", ["notes.json"]),  # unless they are asked for
        ("odd", ["x/odd.media"]),  # an unknown suffix
        ("bare", ["x/bare"]),
        ("v2", []),  # `v2.5` is no `v2` with a suffix
        ("v2.5", ["x/v2.5"]),
        ("-0abc", ["x/-0abc.MKV"]),
        ("unfinished", []),
        ("linked", ["elsewhere/linked.mp4"]),
        ("both", ["both.mkv"]),  # a video rather than the sound that was made of it
        ("twin", ["x/twin.mp4", "y/twin.mp4"]),
        ("sound", ["y/sound.flac", "y/sound.wav"]),
        ("cafe\u0301", ["caf\u00e9.mp4"]),  # the same accent, coded otherwise
        ("hidden", []),
        ("", []),
        ("../a", []),
        ("/a.mp4", []),
    ],
)
def test_media_are_found_by_name(tmp_path: Path, name: str, expected: list[str]) -> None:
    touch(tmp_path, "a.mp4", "x/a.mp4", "x/b.webm", "v1.5.mkv", "V.MP4", "notes.json", "notes.en.vtt", "both.wav")
    touch(tmp_path, "both.mkv", "x/twin.mp4", "y/twin.mp4", "y/sound.wav", "y/sound.flac", "caf\u00e9.mp4")
    touch(tmp_path, ".hidden.mp4", "._a.mp4", "x/odd.media", "x/bare", "x/v2.5", "x/-0abc.MKV", "unfinished.mp4.part")
    touch(tmp_path, "unfinished.jpg", ".disk/linked.mp4")
    (tmp_path / "elsewhere").symlink_to(tmp_path / ".disk")
    (tmp_path / "x" / "back").symlink_to(tmp_path)  # a loop
    assert MediaIndex(tmp_path).find(name) == expected


def test_media_with_ambiguous_names_are_rejected(tmp_path: Path) -> None:
    media = touch(tmp_path / "media", "x/a.mp4", "y/a.mp4")
    result = write_manifest([record("a", "text")], media, tmp_path / "out")
    assert result.rejected == {"ambiguous": 1}
    assert pq.read_table(tmp_path / "out/rejects.parquet").to_pylist()[0]["detail"] == "x/a.mp4, y/a.mp4"


def test_no_directory_of_media_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no directory of media"):
        write_manifest([record("a", "text")], tmp_path / "nowhere", tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "span"),
    [
        ("Ab3-_56780.mp4", (30.0, 40.0)),  # the entire recording
        ("Ab3-_56780_30.wav", (0.0, None)),
        ("YAb3-_56780.wav", (0.0, None)),
        ("train/YAb3-_56780_30.000_40.000.flac", (0.0, None)),
        ("Ab3-_56780_000030_000040.mp4", (0.0, None)),
        ("Ab3-_56780_30000_40000.m4a", (0.0, None)),
        ("Ab3-_56780_30_40.mkv", (0.0, None)),
    ],
)
def test_the_span_of_what_is_cut_already_is_not_cut_again(tmp_path: Path, file: str, span) -> None:
    excerpt = make_excerpt("clip", "Ab3-_56780", "train", [Text("text")], (30.0, 40.0), "here")
    assert isinstance(excerpt, SourceRecord)
    write_manifest([excerpt], touch(tmp_path / "media", file), tmp_path / "out")
    (found,) = read_manifest(tmp_path / "out" / "manifest.parquet")
    assert (found.media, (found.start_s, found.end_s)) == (file, span)


def test_another_span_of_the_recording_is_not_taken_for_it(tmp_path: Path) -> None:
    excerpt = make_excerpt("clip", "Ab3-_56780", "train", [Text("text")], (30.0, 40.0), "here")
    media = touch(tmp_path / "media", "Ab3-_56780_40.mp4", "Ab3-_56780_30_50.mp4", "Ab3-_5678.mp4")
    assert write_manifest([excerpt], media, tmp_path / "out").rejected == {"missing": 1}


def test_the_bare_name_is_never_that_of_a_cut() -> None:
    assert "Yx" not in cut_names("Yx", 0, 10)
    assert len(cut_names("x", 0.5, 10)) == len(set(cut_names("x", 0.5, 10)))


def run(*arguments: str | Path) -> object:
    """Run the command; the result is its exit code, or its message."""
    with pytest.raises(SystemExit) as stopped:
        main(["check-corpus", *map(str, arguments)])
    return stopped.value.code


def test_the_command_writes_a_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    media = touch(tmp_path / "media", "video0.mp4", "video1.mp4", "video3.mp4", "video4.mp4")
    assert run("msrvtt", "--annotations", SAMPLES / "msrvtt", "--media", media, "--out", tmp_path / "out") == 0
    assert capsys.readouterr().out.splitlines() == [
        "msrvtt: 4 accepted, 2 rejected (missing 2)",
        "  video2: missing, no media file video2[.*]",
        "  video5: missing, no media file video5[.*]",
    ]
    assert len(list(read_manifest(tmp_path / "out" / "manifest.parquet"))) == 4


def test_the_command_lists_what_is_missing_when_nothing_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = ("--annotations", SAMPLES / "msrvtt", "--media", SAMPLES / "msrvtt", "--out", tmp_path / "out")
    assert run("msrvtt", *nothing) == 0
    assert capsys.readouterr().out.startswith("msrvtt: 0 accepted, 6 rejected (missing 6)\n")


def test_a_mistake_ends_the_command_with_a_sentence(tmp_path: Path) -> None:
    common = ("--annotations", tmp_path, "--media", tmp_path, "--out", tmp_path / "out")
    assert re.search(r"has neither MSRVTT_data\.json", str(run("msrvtt", *common)))
    assert re.search("nonesuch.*msrvtt", str(run("nonesuch", *common)))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["missing", "empty", "no table", "another table"])
def test_a_damaged_manifest_is_one_sentence_that_names_it(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "manifest.parquet"
    if damage == "another table":
        pq.write_table(pa.table({"clip_id": ["a"]}), path)
    elif damage != "missing":
        path.write_bytes(b"" if damage == "empty" else b"PAR1 and nothing else")
    with pytest.raises(ValueError, match=rf"{path} can't be read as a manifest: "):
        list(read_manifest(path))


def test_a_file_that_is_removed_while_it_is_listed_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "stays.mp4").touch()
    monkeypatch.setattr(media_index, "walk_files", lambda _: iter(["download.mp4", "stays.mp4"]))
    assert write_listing(tmp_path, tmp_path / "out.csv") == 1
    assert (tmp_path / "out.csv").read_text().startswith("stays.mp4,0,")


def test_a_listing_has_every_file_that_is_not_hidden_with_size_and_time(tmp_path: Path) -> None:
    media = tmp_path / "media"
    (media / "deep").mkdir(parents=True)
    names = ["a.mp4", 'deep/with "quotes", and commas.wav', "deep/b.wav", os.fsdecode(b"not-utf8-\xff.wav")]
    for size, name in enumerate(names):
        (media / name).write_bytes(b"x" * size)
    (media / ".hidden").touch()
    assert write_listing(media, tmp_path / "out.csv") == len(names)
    with (tmp_path / "out.csv").open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.reader(file))
    expected = [[name, str(size), str((media / name).stat().st_mtime_ns)] for size, name in enumerate(names)]
    assert rows == sorted(expected)
    with pytest.raises(ValueError, match="there is no directory of media"):
        write_listing(tmp_path / "nowhere", tmp_path / "out.csv")
