"""Clips of tar shards: the same as of files, decoded shard by shard, and resumed where a run was killed."""

import json
from pathlib import Path

import lance
import pyarrow.parquet as pq
import pytest
import torch
from distributed import LocalCluster

from clip4vla.clips import fragments
from clip4vla.clips import ingest as stage
from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.ingest import ingest
from clip4vla.clips.loader import TrainingBatches, training_loader
from clip4vla.clips.sampler import StepSampler
from clip4vla.config import ShardsConfig
from clip4vla.corpora import folder, webdataset
from clip4vla.corpora.manifest import MANIFEST_FILE, write_manifest
from tests.clips.conftest import AUDIO, CLIPS, TRANSFORM
from tests.media.sample import tone, write_media
from tests.shards import write_shard

SHARDS = ("00000.tar", "more/00001.tar", "more/00002.tar")
SAMPLES = 3
"""Of each shard."""
SHAPES = (("mp4", "libx264", "aac"), ("webm", "libvpx", "libopus"), ("wav", None, "pcm_s16le"), ("flac", None, "flac"))
COLUMNS = ["frames", "audio", "channels", "texts", "start_s", "end_s", "notes"]


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directories `shards` and `files`, with the same media and texts, a table for the latter, and manifests."""
    directory = tmp_path_factory.mktemp("corpora")
    rows = []
    for s, shard in enumerate(SHARDS):
        samples = {}
        for i in range(SAMPLES):
            suffix, video, audio = SHAPES[(s * SAMPLES + i) % len(SHAPES)]
            name = f"{s:05d}{i:04d}.{suffix}"
            (directory / "files").mkdir(exist_ok=True)
            file = write_media(directory / "files" / name, video, audio, wave=tone(16000, 2.0, 0.2 + 0.1 * i))
            texts = [f"text of {name}", f"another of {name}"]
            samples[name[:9]] = {suffix: file.read_bytes(), "txt": texts[0], "json": {"caption": texts[1]}}
            rows += [{"path": name, "text": text, "split": "train"} for text in texts]
        write_shard(directory / "shards" / shard, samples)
    (directory / "tables").mkdir()
    (directory / "tables" / "texts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    captions = ShardsConfig(captions=(".txt", "caption"))
    of_shards = write_manifest(webdataset.read(directory / "shards", captions), directory / "shards", directory / "ms")
    of_files = write_manifest(folder.read(directory / "tables"), directory / "files", directory / "mf")
    assert of_shards.accepted == of_files.accepted == SAMPLES * len(SHARDS)
    return directory


def make(corpora: Path, out: Path, **changes: object) -> Path:
    ingest(corpora / "ms" / MANIFEST_FILE, corpora / "shards", out, CLIPS.model_copy(update=changes), AUDIO)
    return out / "train.lance"


def test_clips_of_shards_are_those_of_files_and_make_a_batch(corpora: Path, tmp_path: Path) -> None:
    clips = make(corpora, tmp_path / "shards")
    ingest(corpora / "mf" / MANIFEST_FILE, corpora / "files", tmp_path / "files", CLIPS, AUDIO)
    of_files = lance.dataset(str(tmp_path / "files" / "train.lance")).to_table()
    of_shards = lance.dataset(str(clips)).to_table()
    assert of_shards.select(COLUMNS) == of_files.select(COLUMNS)
    assert of_shards["media"][0].as_py() == "00000.tar/000000000.mp4"
    dataset = ClipDataset([clips])
    sampler = StepSampler(dataset.sizes, None, 4, epochs=1, seed=0)
    batch = next(iter(training_loader(TrainingBatches(dataset, TRANSFORM, sampler, 0, 1), 0, workers=0)))
    assert len(batch) == 4
    assert all(clip_id.split(".tar/")[0] + ".tar" in SHARDS for clip_id in batch.clip_ids)
    assert torch.all(batch.samples > 0)


def test_a_shard_is_a_chunk_of_bounded_memory(corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "CHUNK", 2)
    chunks: list[stage.Chunk] = []
    usual = stage.ingest_chunk
    monkeypatch.setattr(stage, "ingest_chunk", lambda spec, chunk: chunks.append(chunk) or usual(spec, chunk))
    sizes: list[int] = []
    write = fragments.write_rows
    monkeypatch.setattr(fragments, "write_rows", lambda *given: sizes.append(len(given[2])) or write(*given))
    clips = make(corpora, tmp_path / "out")
    assert [{record.media.rpartition("/")[0] for record in chunk.records} for chunk in chunks] == [{s} for s in SHARDS]
    assert sizes == [2, 1] * len(SHARDS)
    assert lance.dataset(str(clips)).to_table() == lance.dataset(str(make(corpora, tmp_path / "again"))).to_table()


def test_a_killed_run_continues_with_the_next_shard(
    corpora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    decode = stage._ingest_clip
    decoded: list[str] = []

    def interrupt(record, spec):
        if len(decoded) == SAMPLES + 1:
            raise KeyboardInterrupt
        decoded.append(record.media)
        return decode(record, spec)

    monkeypatch.setattr(stage, "_ingest_clip", interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(corpora, tmp_path / "killed")
    monkeypatch.setattr(stage, "_ingest_clip", decode)
    clips = make(corpora, tmp_path / "killed")
    assert f"continuing: {SAMPLES} of {SAMPLES * len(SHARDS)} clips" in capsys.readouterr().err
    assert lance.dataset(str(clips)).to_table() == lance.dataset(str(make(corpora, tmp_path / "clean"))).to_table()


def test_a_dask_cluster_decodes_shards(corpora: Path, tmp_path: Path) -> None:
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address=None) as cluster:
        clips = make(corpora, tmp_path / "dask", dask=cluster.scheduler_address)
    assert lance.dataset(str(clips)).to_table() == lance.dataset(str(make(corpora, tmp_path / "here"))).to_table()


def test_a_shard_that_was_replaced_since_a_failed_run_is_decoded_again(tmp_path: Path) -> None:
    media = [write_media(tmp_path / f"{i}.mp4").read_bytes() for i in range(2)]
    shards = tmp_path / "media"
    write_shard(shards / "0.tar", {"a": {"mp4": media[0], "txt": "a"}})
    write_shard(shards / "1.tar", {"b": {"mp4": b"no video", "txt": "b"}})
    write_manifest(webdataset.read(shards), shards, tmp_path / "ms")
    strict = CLIPS.model_copy(update={"max_reject_fraction": 0.0})
    arguments = (tmp_path / "ms" / MANIFEST_FILE, shards, tmp_path / "out", strict, AUDIO)
    with pytest.raises(ValueError, match=r"1 accepted, 1 rejected[^/]*\n  1.tar/b.mp4: (not_media|corrupt)"):
        ingest(*arguments)
    write_shard(shards / "1.tar", {"b": {"mp4": media[1], "txt": "b"}})
    assert ingest(*arguments).accepted == 2
    assert pq.read_table(tmp_path / "out" / "rejects.parquet").num_rows == 0


def test_a_member_that_vanished_is_a_reject_that_names_it(tmp_path: Path) -> None:
    media = write_media(tmp_path / "a.mp4").read_bytes()
    shards = tmp_path / "media"
    write_shard(shards / "0.tar", {"a": {"mp4": media, "txt": "a"}, "b": {"mp4": media, "txt": "b"}})
    write_manifest(webdataset.read(shards), shards, tmp_path / "ms")
    write_shard(shards / "0.tar", {"a": {"mp4": media, "txt": "a"}})
    ingest(tmp_path / "ms" / MANIFEST_FILE, shards, tmp_path / "out", CLIPS, AUDIO)
    (reject,) = pq.read_table(tmp_path / "out" / "rejects.parquet").to_pylist()
    assert (reject["clip_id"], reject["reason"]) == ("0.tar/b", "missing")
    assert "0.tar has no member b.mp4" in reject["detail"]
