"""Whatever stands in an annotation file: every entry is accepted or rejected, or a ValueError names the file."""

import csv
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clip4vla.corpora.base import find_adapter
from clip4vla.corpora.howto100m import MIN_SECONDS, Caption, merge_captions
from clip4vla.corpora.manifest import read_manifest, write_manifest
from clip4vla.records import Reject, SourceRecord
from tests.corpora.test_adapters import PUBLISHED, read, sample

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

WRITABLE = st.characters(exclude_categories=["Cs"])
SENTENCE = st.text(WRITABLE, max_size=30) | st.sampled_from(
    ["", " ", 'says "hi", twice', "two\nlines", "a\r\nb", "'", "#", ","]
)
NAME = st.sampled_from(["clip0", "clip1", "clip.2", "-clip_3", "gone", "", "été"])
SECONDS = st.sampled_from(["0", "10", "10.5", "", "-3", "nan", "inf", "1e400", "soon"])


@contextmanager
def workplace() -> Iterator[tuple[Path, Path]]:
    """A directory for annotations, and one of media that has clip0 to clip_3."""
    with tempfile.TemporaryDirectory() as name:
        annotations, media = Path(name, "annotations"), Path(name, "media")
        annotations.mkdir()
        media.mkdir()
        for file in ("clip0.mp4", "clip1.mp4", "clip.2.mp4", "-clip_3.mkv", "été.mp4"):
            (media / file).touch()
        yield annotations, media


def write_csv(path: Path, header: list[str], rows: list[tuple[str, ...]], mark: bool = False) -> None:
    with path.open("w", encoding="utf-8-sig" if mark else "utf-8", newline="") as file:
        csv.writer(file).writerows([header, *rows])


def count(adapter: str, annotations: Path, media: Path) -> tuple[int, dict[str, int], list[SourceRecord]]:
    """Entries, those rejected by reason, and the accepted, after a round through the manifest."""
    entries = list(find_adapter(adapter)(annotations))
    result = write_manifest(entries, media, annotations.parent / "out")
    accepted = list(read_manifest(annotations.parent / "out" / "manifest.parquet"))
    assert result.accepted == len(accepted)
    assert result.accepted + result.rejected.total() == len(entries)
    return len(entries), dict(result.rejected), accepted


@pytest.mark.parametrize("name", PUBLISHED)
@given(data=st.data())
@FEW
def test_a_file_with_anything_in_it_gives_entries_or_names_itself(name: str, data: st.DataObject) -> None:
    with workplace() as (annotations, _):
        for file in sample(name).iterdir():
            (annotations / file.name).write_bytes(file.read_bytes())
        file = data.draw(st.sampled_from(sorted(annotations.iterdir())))
        content = file.read_bytes()
        start = data.draw(st.integers(0, len(content)))
        stop = data.draw(st.integers(start, min(len(content), start + 40)))
        odd = st.sampled_from(
            [b"", b'"', b",", b"\n", b"{", b"]", b"null", b"\\ud800", b"\xff", b"\x00", b"NaN", b"1e999"]
        )
        file.write_bytes(content[:start] + data.draw(odd | st.binary(max_size=8)) + content[stop:])
        try:
            entries = list(find_adapter(name)(annotations))
        except ValueError as error:
            assert str(annotations) in str(error)  # noqa: PT017
        else:
            assert all(isinstance(entry, SourceRecord | Reject) for entry in entries)


@given(rows=st.lists(st.tuples(st.just("1"), NAME, SECONDS, SENTENCE), max_size=8), mark=st.booleans())
@FEW
def test_audiocaps_loses_no_row(rows: list[tuple[str, ...]], mark: bool) -> None:
    with workplace() as (annotations, media):
        write_csv(annotations / "train.csv", ["audiocap_id", "youtube_id", "start_time", "caption"], rows, mark)
        entries, rejected, accepted = count("audiocaps", annotations, media)
        assert entries == len({row[1:3] for row in rows})
        assert sum(rejected.values()) + len(accepted) == entries
        for record in accepted:
            expected = [row[3].strip() for row in rows if f"{row[1]}_{row[2]}" == record.clip_id]
            assert [text.text for text in record.texts] == [text for text in expected if text]


FOLDER_ROW = st.fixed_dictionaries(
    {"path": NAME, "text": SENTENCE},
    optional={
        "start": SECONDS,
        "end": SECONDS,
        "split": st.sampled_from(["train", "", "tset"]),
        "audio_type": st.sampled_from(["verbal", "nonverbal", "", "loud"]),
    },
)


@given(rows=st.lists(FOLDER_ROW, max_size=8), mark=st.booleans())
@FEW
def test_a_folder_loses_no_row_and_reads_both_tables_alike(rows: list[dict[str, str]], mark: bool) -> None:
    columns = ["path", "text", "start", "end", "split", "audio_type"]
    found = []
    for kind in ("csv", "jsonl"):
        with workplace() as (annotations, media):
            if kind == "csv":
                table = [tuple(row.get(column, "") for column in columns) for row in rows]
                write_csv(annotations / "clips.csv", columns, table, mark)
            else:
                lines = "".join(json.dumps(row) + "\n" for row in rows)
                (annotations / "clips.jsonl").write_text(lines, encoding="utf-8-sig" if mark else "utf-8")
            try:
                entries, rejected, accepted = count("folder", annotations, media)
            except ValueError as error:
                assert " here, but in " in str(error)  # noqa: PT017 (a clip in two splits)
                found.append(None)
                continue
            usable = sum(len(record.texts) for record in accepted)
            assert entries <= len(rows) or not rows
            assert usable <= len(rows)
            found.append((entries, rejected, [(r.clip_id, r.split, r.texts) for r in accepted]))
    assert found[0] == found[1]


@given(
    videos=st.lists(st.tuples(NAME.filter(bool), st.sampled_from(["train", "validate", "test", "dev"])), max_size=6),
    sentences=st.lists(st.tuples(NAME.filter(bool), SENTENCE | st.just("\ud800")), max_size=8),
)
@FEW
def test_msrvtt_loses_no_video(videos: list[tuple[str, str]], sentences: list[tuple[str, str]]) -> None:
    tree = {
        "videos": [{"video_id": video_id, "split": split} for video_id, split in videos],
        "sentences": [{"video_id": video_id, "caption": caption} for video_id, caption in sentences],
    }
    with workplace() as (annotations, media):
        (annotations / "MSRVTT_data.json").write_text(json.dumps(tree), encoding="utf-8")
        entries, _, accepted = count("msrvtt", annotations, media)
        known = {video_id for video_id, _ in videos}
        assert entries == len(videos) + len({video_id for video_id, _ in sentences} - known)
        for record in accepted:
            expected = [caption.strip() for video_id, caption in sentences if video_id == record.clip_id]
            assert [text.text for text in record.texts] == [text for text in expected if text]


@given(
    clips=st.lists(
        st.tuples(
            st.sampled_from(
                ["clip0_000003_000013", "clip1_000010_000010", "gone_000000_000010", "clip0", "", "\ud800"]
            ),
            st.lists(SENTENCE, max_size=3),
        ),
        max_size=6,
    )
)
@FEW
def test_vatex_loses_no_clip(clips: list[tuple[str, list[str]]]) -> None:
    with workplace() as (annotations, media):
        tree = [{"videoID": video_id, "enCap": captions} for video_id, captions in clips]
        (annotations / "vatex_training_v1.0.json").write_text(json.dumps(tree), encoding="utf-8")
        entries, _, accepted = count("vatex", annotations, media)
        assert entries == len(clips)
        assert {record.clip_id for record in accepted} <= {"clip0_000003_000013"}


@given(rows=st.lists(st.tuples(NAME, SECONDS, SECONDS, st.sampled_from(["/m/1", "/m/1,/m/2", "", "/m/3"])), max_size=6))
@FEW
def test_audioset_loses_no_segment(rows: list[tuple[str, ...]]) -> None:
    with workplace() as (annotations, media):
        (annotations / "class_labels_indices.csv").write_text('index,mid,display_name\n0,/m/1,"A, b"\n1,/m/2,C\n')
        lines = [f'{name}, {start}, {end}, "{labels}"' for name, start, end, labels in rows]
        (annotations / "eval_segments.csv").write_text("\n".join(["# one", "# two", *lines, ""]), encoding="utf-8")
        entries, rejected, accepted = count("audioset", annotations, media)
        assert entries == len(rows)
        assert rejected.get("unknown_label", 0) == sum(row[3] == "/m/3" for row in rows)
        assert {text.text for record in accepted for text in record.texts} <= {
            "the sound of A, b",
            "the sound of A, b, C",
        }


TIMES = st.integers(0, 400).map(lambda tenths: tenths / 10)


@given(spans=st.lists(st.tuples(TIMES, TIMES), max_size=25))
@FEW
def test_merged_captions_are_long_enough_and_lose_no_word(spans: list[tuple[float, float]]) -> None:
    captions = [Caption(min(span), max(span), f"word{index}") for index, span in enumerate(spans)]
    merged = merge_captions(captions)
    words = [word for caption in merged for word in caption.text.split()]
    assert sorted(words) == sorted(caption.text for caption in captions)
    assert all(caption.end_s - caption.start_s >= MIN_SECONDS for caption in merged) or len(merged) == 1
    for caption in captions:
        owner = next(m for m in merged if caption.text in m.text.split())
        assert owner.start_s <= caption.start_s <= caption.end_s <= owner.end_s
    assert [caption.start_s for caption in merged] == sorted(caption.start_s for caption in merged)


@given(
    listed=st.lists(NAME, unique=True, max_size=5),
    said=st.dictionaries(
        NAME,
        st.fixed_dictionaries({"start": st.lists(TIMES, max_size=3), "end": st.lists(TIMES, max_size=3)})
        | st.none()
        | st.lists(st.integers(), max_size=2),
        max_size=5,
    ),
    text=st.lists(SENTENCE | st.none(), min_size=3, max_size=3),
)
@FEW
def test_howto100m_answers_for_every_listed_video(listed, said, text) -> None:
    for captions in said.values():
        if isinstance(captions, dict):
            captions["text"] = text[: len(captions["start"])]
    with workplace() as (annotations, media):
        write_csv(annotations / "HowTo100M_v1.csv", ["video_id", "rank"], [(name, "1") for name in listed])
        (annotations / "caption.json").write_text(json.dumps(said), encoding="utf-8")
        _, _, accepted = count("howto100m", annotations, media)
        entries = read("howto100m", annotations)
        assert {entry.media for entry in entries} == set(listed)
        assert {record.media.rsplit(".", 1)[0] for record in accepted} <= set(listed)
