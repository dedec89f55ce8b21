"""Shards in video2dataset's layout: samples become records or rejects that name shard and key."""

import gzip
import json
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clip4vla.config import CorpusConfig, ShardsConfig
from clip4vla.corpora.base import ShardRecord, read_corpus
from clip4vla.corpora.manifest import read_manifest, write_manifest
from clip4vla.corpora.webdataset import look_up, read
from clip4vla.records import Reject, SourceRecord, Text
from tests.shards import Samples, read_shard, special, write_shard, write_tar


def one(directory: Path, samples: Samples, **config: Any) -> list[SourceRecord | Reject]:
    write_shard(directory / "00000.tar", samples)
    return list(read(directory, ShardsConfig(**config)))


def clips(entries: list[SourceRecord | Reject]) -> dict[str, list[str]]:
    found = {}
    for entry in entries:
        assert isinstance(entry, SourceRecord), entry
        found[entry.clip_id] = [text.text for text in entry.texts]
    return found


def rejects(entries: list[SourceRecord | Reject]) -> list[tuple[str, str]]:
    return [(entry.clip_id, entry.reason) for entry in entries if isinstance(entry, Reject)]


def sample(text: str = "a text", **document: Any) -> dict[str, Any]:
    return {"mp4": b"media", "txt": text, "json": document}


def test_a_sample_is_a_clip_with_its_text(tmp_path: Path) -> None:
    (entry,) = one(tmp_path, {"000000012": sample("waves, and gulls", caption="of the JSON", key="000000012")})
    media = "00000.tar/000000012.mp4"
    text = Text("waves, and gulls")
    assert entry == ShardRecord("00000.tar/000000012", media, "train", (text,), shard="00000.tar")


def test_samples_are_those_of_the_library(tmp_path: Path) -> None:
    members = [
        *(("./a.mp4", b"1"), ("./a.txt", b"a"), ("folder.v1/b.WEBM", b"2"), ("folder.v1/b.txt", b"b")),
        *(("__meta__/c.mp4", b"3"), ("__meta__/c.txt", b"c"), ("README", b"no sample"), ("._d.mp4", b"4")),
        *(("d.flac", b"5"), ("d.en.txt", b"left alone"), ("d.txt", b"d")),
    ]
    path = write_tar(tmp_path / "0.tar", *members)
    found = {entry.clip_id.removeprefix("0.tar/"): entry.texts[0].text for entry in read(tmp_path)}
    assert found == {key.removeprefix("./"): sample["txt"].decode() for key, sample in read_shard(path).items()}
    assert found == {"a": "a", "folder.v1/b": "b", "d": "d"}


def test_texts_come_from_members_and_keys(tmp_path: Path) -> None:
    document = {
        "caption": "one",
        "alt_text": ["two", None, "one", 3],
        "yt_meta_dict": {"info": {"title": "three"}, "subtitles": [{"lines": ["four"]}, {"lines": ["five", "six"]}]},
    }
    keys = [".txt", "caption", "alt_text", "yt_meta_dict.info.title", "yt_meta_dict.subtitles.lines", "no.such.key"]
    entries = one(tmp_path, {"a": sample("zero", **document)}, captions=keys)
    assert clips(entries) == {"00000.tar/a": ["zero", "one", "two", "three", "four", "five", "six"]}


def test_audio_types_come_by_key_or_with_it(tmp_path: Path) -> None:
    samples = {
        "a": sample("x", said="hello", heard="a bell", kind="nonverbal"),
        "b": sample("x", said="x", kind=None),
        "c": sample("x", kind="loud"),
    }
    entries = one(tmp_path, samples, verbal="said", nonverbal=["heard"], audio_type="kind")
    assert [entry.texts for entry in entries if isinstance(entry, SourceRecord)] == [
        (Text("x", "nonverbal"), Text("hello", "verbal"), Text("a bell", "nonverbal")),
        (Text("x"), Text("x", "verbal")),
    ]
    assert rejects(entries) == [("00000.tar/c", "unknown_audio_type")]


def test_every_span_is_a_clip(tmp_path: Path) -> None:
    samples = {
        "list": sample(clips=[[0.0, 5], ["00:00:05.500", "1:00:10"]]),
        "one": sample(clips=[3, 4.5]),
        "none": sample(),
        "bad": sample(clips=[[5, 5], [0, 1], [2, None], "x", None, [float("nan"), 3], [-1, 3], [0, "1:1:1:1"]]),
        "empty": sample(clips=[]),
        "number": sample(clips=7),
    }
    entries = one(tmp_path, samples, spans="clips")
    found = {entry.clip_id: (entry.start_s, entry.end_s) for entry in entries if isinstance(entry, SourceRecord)}
    assert found == {
        "00000.tar/list#0.000-5.000": (0, 5),
        "00000.tar/list#5.500-3610.000": (5.5, 3610),
        "00000.tar/one#3.000-4.500": (3, 4.5),
        "00000.tar/none": (0, None),
        "00000.tar/bad#0.000-1.000": (0, 1),
    }
    assert rejects(entries) == [
        *[("00000.tar/bad", "bad_span")] * 7,
        ("00000.tar/empty", "bad_span"),
        ("00000.tar/number", "bad_span"),
    ]


def test_texts_below_the_key_of_spans_are_of_their_span(tmp_path: Path) -> None:
    subtitles = [{"start": "00:00:01.000", "end": "00:00:03.000", "lines": ["hello", "you"]}, {"start": 3, "end": 4}]
    samples = {"a": sample("of all", clip_subtitles=subtitles)}
    entries = one(tmp_path, samples, verbal=["clip_subtitles.lines"], spans="clip_subtitles")
    assert clips(entries) == {
        "00000.tar/a#1.000-3.000": ["of all", "hello", "you"],
        "00000.tar/a#3.000-4.000": ["of all"],
    }


def test_splits_come_by_key(tmp_path: Path) -> None:
    samples = {"a": sample(split="val"), "b": sample(split="test"), "c": sample(split="dev"), "d": sample()}
    entries = one(tmp_path, samples, split="split")
    assert [entry.split for entry in entries if isinstance(entry, SourceRecord)] == ["val", "test"]
    assert rejects(entries) == [("00000.tar/c", "unknown_split"), ("00000.tar/d", "unknown_split")]


def test_what_can_not_be_used_is_a_reject(tmp_path: Path) -> None:
    samples = {
        "failed": {"txt": "x", "json": {"status": "failed_to_download", "error_message": "HTTP Error 404"}},
        "picture": {"jpg": b"media", "txt": "x"},
        "both": {"mp4": b"media", "m4a": b"media", "txt": "of a video"},
        "several": {"mp4": b"media", "webm": b"media", "txt": "x"},
        "json": {"mp4": b"media", "txt": "x", "json": b"{"},
        "list": {"mp4": b"media", "txt": "x", "json": b"[]"},
        "deep": {"mp4": b"media", "txt": "x", "json": b'{"a":' * 100_000},
        "text": {"mp4": b"media", "txt": b"\xff\xfe\x00"},
        "silent": {"mp4": b"media"},
    }
    entries = one(tmp_path, samples)
    assert rejects(entries) == [
        ("00000.tar/failed", "no_media"),
        ("00000.tar/picture", "no_media"),
        ("00000.tar/several", "ambiguous"),
        ("00000.tar/json", "bad_json"),
        ("00000.tar/list", "bad_json"),
        ("00000.tar/deep", "bad_json"),
        ("00000.tar/text", "bad_text"),
    ]
    assert isinstance(entries[0], Reject)
    assert entries[0].detail == "00000.tar: failed: failed_to_download: HTTP Error 404"
    # the manifest rejects the one without texts
    assert clips([e for e in entries if isinstance(e, SourceRecord)]) == {
        "00000.tar/both": ["of a video"],
        "00000.tar/silent": [],
    }


def test_members_that_break_the_layout_are_rejects(tmp_path: Path) -> None:
    write_tar(
        tmp_path / "0.tar",
        *[("a.mp4", b"1"), ("a.txt", b"a"), ("b.mp4", b"1"), ("b.mp4", b"2"), ("b.txt", b"b")],
        *[("c.mp4", b"1"), ("c.txt", b"c"), ("a.mp4", b"2"), ("a.txt", b"late")],
        *[special("d.mp4", tarfile.SYMTYPE, "a.mp4"), ("d.txt", b"d"), ("../e.mp4", b"1")],
    )
    entries = list(read(tmp_path))
    assert clips([e for e in entries if isinstance(e, SourceRecord)]) == {"0.tar/a": ["a"], "0.tar/c": ["c"]}
    assert sorted(rejects(entries)) == [
        ("0.tar/../e.mp4", "bad_name"),
        ("0.tar/a", "out_of_order"),
        ("0.tar/b", "duplicate_member"),
        ("0.tar/d", "no_media"),
        ("0.tar/d.mp4", "not_a_file"),
    ]


def test_shards_are_found_by_their_pattern_and_damaged_ones_are_rejects(tmp_path: Path) -> None:
    good = write_shard(tmp_path / "train" / "00000.tar", {"a": sample()})
    for name in ("00000.parquet", "00000_stats.json", "notes.txt", ".hidden.tar"):
        (tmp_path / name).write_bytes(b"beside the shards")
    (tmp_path / "00001.tar").write_bytes(b"no tar")
    (tmp_path / "00002.tar").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "00003.tar.gz").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "00004.tgz").write_bytes(gzip.compress(good.read_bytes()))
    (tmp_path / "00005.tar").write_bytes(good.read_bytes()[:1538])
    entries = list(read(tmp_path))
    assert list(clips([e for e in entries if isinstance(e, SourceRecord)])) == ["train/00000.tar/a"]
    assert rejects(entries) == [
        ("00001.tar", "not_tar"),
        ("00002.tar", "compressed"),
        ("00003.tar.gz", "compressed"),
        ("00004.tgz", "compressed"),
        ("00005.tar/a.mp4", "truncated"),
        ("00005.tar/a", "no_media"),
    ]
    assert list(clips(list(read(tmp_path, ShardsConfig(pattern="train/*.tar"))))) == ["train/00000.tar/a"]
    with pytest.raises(ValueError, match=r"has no shards: no file below it is called val/\*\.tar"):
        list(read(tmp_path, ShardsConfig(pattern="val/*.tar")))


def test_a_manifest_holds_every_sample(tmp_path: Path) -> None:
    samples = {"a": sample("one"), "b": {"mp4": b"media"}, "c": {"txt": "x"}, "d": sample("\N{BELL}")}
    entries = one(tmp_path / "media", samples)
    result = write_manifest(entries, tmp_path / "media", tmp_path / "manifest")
    assert (result.accepted, dict(result.rejected)) == (2, {"no_text": 1, "no_media": 1})
    accepted = list(read_manifest(tmp_path / "manifest" / "manifest.parquet"))
    assert [record.media for record in accepted] == ["00000.tar/a.mp4", "00000.tar/d.mp4"]
    (tmp_path / "elsewhere").mkdir()
    result = write_manifest(entries, tmp_path / "elsewhere", tmp_path / "other")
    assert dict(result.rejected) == {"missing": 2, "no_text": 1, "no_media": 1}


def test_settings_are_those_of_the_corpus(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", {"a": sample(caption="of the JSON")})
    tree = {"adapter": "webdataset", "role": "pretraining", "media": str(tmp_path)}
    assert clips(list(read_corpus(CorpusConfig.model_validate(tree)))) == {"0.tar/a": ["a text"]}
    tree["shards"] = {"captions": "caption"}
    assert clips(list(read_corpus(CorpusConfig.model_validate(tree)))) == {"0.tar/a": ["of the JSON"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotations": "elsewhere"}, "the annotations of shards are in them"),
        ({"adapter": "folder", "shards": {}}, "shards is for the adapter webdataset"),
        ({"adapter": "folder"}, "annotations"),
        ({"shards": {"captions": []}}, "where texts are"),
        ({"shards": {"pattern": "pipe:cat 0.tar.gz"}}, "pattern"),
        ({"shards": {"spans": ".clips"}}, "spans"),
        ({"shards": {"captions": ["a..b"]}}, "captions"),
        ({"shards": {"key": "x"}}, "key"),
    ],
)
def test_wrong_settings_are_errors(change: dict[str, Any], message: str) -> None:
    tree = {"adapter": "webdataset", "role": "pretraining", "media": "shards"}
    with pytest.raises(ValueError, match=message):
        CorpusConfig.model_validate(tree | change)


def test_keys_lead_through_objects_and_lists() -> None:
    tree = {"a": [{"b": 1}, {"b": [2, None, 3]}, 7, {"c": 4}], "d": None}
    assert look_up(tree, "a.b") == [1, 2, None, 3]
    assert look_up(tree, "d") == look_up(tree, "d.e") == look_up(None, "a") == []


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.sampled_from(["", "0:01", "val", "verbal", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["clips", "start", "end", "t", "kind"]), inner)
    ),
    max_leaves=12,
)
KEYS = st.sampled_from(["clips", "clips.t", "t", "kind", "t.t"])


@given(document=JSON, keys=st.lists(KEYS, min_size=4, max_size=4), cut=st.integers(0, 10240) | st.none())
@settings(max_examples=60, deadline=None)
def test_every_sample_is_accounted_for(document: Any, keys: list[str], cut: int | None) -> None:
    captions, spans, kind, split = keys
    config = ShardsConfig(captions=[".txt", captions], spans=spans, audio_type=kind, split=split)
    data = json.dumps(document).encode()
    with tempfile.TemporaryDirectory() as name:
        media = Path(name, "media")
        path = write_shard(media / "0.tar", {"a": {"mp4": b"x", "txt": "text", "json": data}, "b": {"mp4": b"x"}})
        if cut is not None:
            path.write_bytes(path.read_bytes()[:cut])
        entries = list(read(media, config))
        result = write_manifest(entries, media, Path(name, "out"))
        accepted = list(read_manifest(Path(name, "out", "manifest.parquet")))
    assert entries
    assert result.accepted + result.rejected.total() == len(entries)
    assert {record.media for record in accepted} <= {"0.tar/a.mp4", "0.tar/b.mp4"}
    for entry in entries:
        assert entry.clip_id.startswith("0.tar")
        assert not isinstance(entry, Reject) or "0.tar" in entry.detail
