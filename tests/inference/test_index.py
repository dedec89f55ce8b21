"""Indexing a folder and searching it, with a tiny model of random weights."""

import json
import os
import shutil
from itertools import pairwise
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from clip4vla.inference import index as index_module
from clip4vla.inference.index import (
    CLIPS,
    Index,
    IndexedModel,
    build,
    find_media,
    index_vectors,
    nearest,
    schema,
    spans,
)
from clip4vla.media.encode import encode_mp3
from clip4vla.records import MODALITIES
from tests.inference.tiny import INFERENCE, save_retrieval, write_video

SECONDS = 2.0


@pytest.fixture(scope="module")
def run_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_retrieval(tmp_path_factory.mktemp("run"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three videos, one of them long, a sound, a broken file and a note."""
    folder = tmp_path / "media"
    (folder / "more").mkdir(parents=True)
    for name, seed, seconds in (("one.mp4", 1, 1), ("more/it's two.mp4", 2, 1), ("long.mp4", 3, 5)):
        write_video(folder / name, seed, seconds)
    noise = np.random.default_rng(4).integers(-9000, 9000, (1, 16000)).astype(np.int16)
    (folder / "sound.mp3").write_bytes(encode_mp3(noise, 16000))
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "notes.txt").write_text("no media")
    return folder


def model(content: str = "abc") -> IndexedModel:
    return IndexedModel(name="clip4vla", version="3", content=content, inference=INFERENCE, clip_seconds=SECONDS)


def rows(directory: Path) -> list[dict[str, object]]:
    table = lance.dataset(str(directory / CLIPS)).to_table(columns=["path", "start_s", "end_s", "both"])
    return sorted(table.to_pylist(), key=lambda row: (row["path"], row["start_s"]))


def test_a_folder_becomes_clips_and_rejects_with_reasons(folder: Path, run_directory: Path, tmp_path: Path) -> None:
    done = build(folder, tmp_path / "index", run_directory, model())
    assert (done.clips, done.added, done.kept, done.removed) == (6, 4, 0, 0)
    assert list(done.rejects) == ["broken.mp4"]
    assert done.rejects["broken.mp4"].startswith("corrupt: ")
    assert json.loads((tmp_path / "index/rejects.json").read_text()) == done.rejects
    found = rows(tmp_path / "index")
    assert [row["path"] for row in found] == [*["long.mp4"] * 3, "more/it's two.mp4", "one.mp4", "sound.mp3"]
    assert found[0]["end_s"] == found[1]["start_s"]
    assert found[2]["end_s"] == pytest.approx(5.0, abs=0.1)


@pytest.mark.parametrize("damage", ["", "{}", "[]", "null", '{"model": 3, "folder": "/media"}', '{"model": {}}'])
def test_a_damaged_note_about_an_index_is_one_sentence(tmp_path: Path, damage: str) -> None:
    (tmp_path / "index.json").write_text(damage)
    with pytest.raises(ValueError, match=r"index.json is damaged, or of another version: remove .* and index again"):
        Index(tmp_path)


def test_a_file_that_is_removed_while_a_folder_is_listed_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stays.mp4").touch()
    monkeypatch.setattr(index_module, "walk_files", lambda _: iter(["download.mp4", "stays.mp4"]))
    assert list(find_media(tmp_path)) == ["stays.mp4"]


def test_a_clip_is_found_by_its_own_vector_and_scored_by_every_modality(
    folder: Path, run_directory: Path, tmp_path: Path
) -> None:
    build(folder, tmp_path / "index", run_directory, model())
    dataset = lance.dataset(str(tmp_path / "index" / CLIPS))
    for row in dataset.to_table().to_pylist():
        query = np.array(row["both"], np.float32)
        best = nearest(dataset, query, 3, "both")[0]
        assert (best.path, best.start_s) == (row["path"], row["start_s"])
        assert best.scores["both"] == pytest.approx(1.0, abs=1e-5)
        assert best.sound is not None
        if row["path"] == "sound.mp3":
            assert set(best.scores) == {"audio", "both"}
            assert best.pictures == ()
            assert best.scores["audio"] == pytest.approx(1.0, abs=1e-5)
        else:
            assert set(best.scores) == set(MODALITIES)
            assert best.pictures[0].startswith(b"\xff\xd8")
    assert "sound.mp3" not in {hit.path for hit in nearest(dataset, query, 10, "video")}
    assert len(nearest(dataset, query, 10, "video")) == 5


def test_a_sentence_finds_clips_in_the_order_of_their_scores(folder: Path, run_directory: Path, tmp_path: Path) -> None:
    build(folder, tmp_path / "index", run_directory, model())
    index = Index(tmp_path / "index")
    hits = index.search("a cow moos", top=4)
    assert len(hits) == 4
    assert [hit.scores["both"] for hit in hits] == sorted((hit.scores["both"] for hit in hits), reverse=True)
    heard = index.search("a cow moos", top=6, by="audio")
    assert heard[0].scores["audio"] == max(hit.scores["audio"] for hit in heard)
    with pytest.raises(ValueError, match="nothing to search for"):
        index.search("  ", top=4)


def test_a_second_build_adds_new_files_and_removes_missing_ones(
    folder: Path, run_directory: Path, tmp_path: Path
) -> None:
    build(folder, tmp_path / "index", run_directory, model())
    before = rows(tmp_path / "index")
    (folder / "more/it's two.mp4").unlink()
    write_video(folder / "one.mp4", 9)
    os.utime(folder / "one.mp4", ns=(1, 1))
    write_video(folder / "new.mp4", 5)
    done = build(folder, tmp_path / "index", run_directory, model())
    assert (done.clips, done.added, done.kept, done.removed) == (6, 2, 2, 2)
    after = rows(tmp_path / "index")
    assert [row["path"] for row in after] == [*["long.mp4"] * 3, "new.mp4", "one.mp4", "sound.mp3"]
    assert after[0] == before[0]
    assert after[4]["both"] != before[4]["both"]


def test_another_model_indexes_every_file_again(folder: Path, run_directory: Path, tmp_path: Path) -> None:
    build(folder, tmp_path / "index", run_directory, model())
    done = build(folder, tmp_path / "index", run_directory, model("other"))
    assert (done.clips, done.added, done.kept) == (6, 4, 0)
    assert Index(tmp_path / "index").model.content == "other"


def test_a_killed_build_continues_where_it_was(
    folder: Path, run_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    written: list[int] = []
    write = index_module._Rows.write

    def die_at_the_second(*arguments: object) -> None:
        if written:
            raise Killed
        written.append(1)
        write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(index_module, "CLIPS_PER_COMMIT", 2)
    monkeypatch.setattr(index_module._Rows, "write", die_at_the_second)
    with pytest.raises(Killed):
        build(folder, tmp_path / "index", run_directory, model())
    kept = {str(row["path"]) for row in rows(tmp_path / "index")}
    monkeypatch.setattr(index_module._Rows, "write", write)
    done = build(folder, tmp_path / "index", run_directory, model())
    assert (done.clips, done.kept) == (6, len(kept))


def test_a_folder_or_index_that_cannot_be_used_is_named(folder: Path, run_directory: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no folder"):
        build(tmp_path / "nowhere", tmp_path / "index", run_directory, model())
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="has no media"):
        build(tmp_path / "empty", tmp_path / "index", run_directory, model())
    with pytest.raises(ValueError, match="there is no index"):
        Index(tmp_path / "index")
    with pytest.raises(ValueError, match="is no index, and isn't empty"):
        build(folder, folder, run_directory, model())
    shutil.copytree(folder, tmp_path / "bad")
    for file in (tmp_path / "bad").rglob("*.mp*"):
        file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"no file of .* can be used"):
        build(tmp_path / "bad", tmp_path / "other", run_directory, model())


@pytest.mark.parametrize(("seconds", "count"), [(0.5, 1), (10.0, 1), (10.1, 2), (35.0, 4)])
def test_a_file_is_cut_into_equal_parts_that_are_short_enough(seconds: float, count: int) -> None:
    parts = spans(seconds, 10.0)
    assert len(parts) == count
    assert parts[0][0] == 0
    assert parts[-1][1] == pytest.approx(seconds)
    assert all(before[1] == after[0] for before, after in pairwise(parts))


def test_the_vector_index_finds_what_the_scan_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((1200, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    nothing = {"bytes": 0, "modified_ns": 0, "start_s": 0.0, "end_s": 1.0, "pictures": [], "sound": None}
    table = [{"path": str(i), **nothing, "video": None, "audio": v, "both": v} for i, v in enumerate(vectors)]
    lance.write_dataset(pa.Table.from_pylist(table, schema(16)), str(tmp_path / CLIPS))
    dataset = lance.dataset(str(tmp_path / CLIPS))
    exact = [[hit.path for hit in nearest(dataset, query, 5, "both")] for query in vectors[:20]]
    assert [paths[0] for paths in exact] == [str(i) for i in range(20)]
    monkeypatch.setattr(index_module, "EXACT_UP_TO", 1000)
    index_vectors(dataset)
    dataset = lance.dataset(str(tmp_path / CLIPS))
    assert {column for index in dataset.list_indices() for column in index["fields"]} == {"audio", "both"}
    found = [[hit.path for hit in nearest(dataset, query, 5, "both")] for query in vectors[:20]]
    assert np.mean([len({*a} & {*b}) / 5 for a, b in zip(exact, found, strict=True)]) > 0.9


def test_files_are_found_as_for_a_corpus(tmp_path: Path) -> None:
    inside, outside = tmp_path / "media", tmp_path / "elsewhere"
    for folder in (inside / ".Trash", outside):
        folder.mkdir(parents=True)
        (folder / "b.mp4").touch()
    (inside / "linked").symlink_to(outside)
    for name in ("a.mp4", "._a.mp4", "12:30 talk.mp4", "notes.txt"):
        (inside / name).touch()
    assert list(find_media(inside)) == ["12:30 talk.mp4", "a.mp4", "linked/b.mp4"]
