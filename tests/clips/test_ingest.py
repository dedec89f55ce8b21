"""From a manifest to clips: every record is a row or a reject, and a killed run continues to the same result."""

import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from distributed import LocalCluster

from clip4vla.clips import fragments, workers
from clip4vla.clips import ingest as stage
from clip4vla.clips.dataset import COLUMNS
from clip4vla.clips.format import decode_frame, decode_row
from clip4vla.clips.ingest import ingest
from clip4vla.config import MediaLimits
from clip4vla.corpora.manifest import ManifestSummary, read_manifest
from clip4vla.media.decode import decode
from clip4vla.utils.supervise import kill_process_tree
from tests.clips.conftest import AUDIO, CLIPS, RATE, Corpus, write_corpus
from tests.media.sample import write_media
from tests.project import REPOSITORY


def content(out: Path) -> dict[str, pa.Table]:
    return {path.stem: lance.dataset(str(path)).to_table() for path in sorted(out.glob("*.lance"))}


def test_every_record_is_a_row_or_a_reject(clips: Path) -> None:
    tables = content(clips / "one")
    assert {split: table.num_rows for split, table in tables.items()} == {"train": 11, "val": 2, "test": 4}
    assert tables["train"]["clip_id"].to_pylist() == [f"train{index}" for index in range(11)]
    rejects = pq.read_table(clips / "one" / "rejects.parquet").to_pylist()
    assert [(r["clip_id"], r["split"], r["reason"]) for r in rejects] == [("broken0", "train", "corrupt")]
    left = {path.name for path in (clips / "one").iterdir()}
    assert left == {"train.lance", "val.lance", "test.lance", "rejects.parquet"}


def test_the_files_are_of_the_version_whose_rows_are_quick_to_read(clips: Path) -> None:
    assert {lance.dataset(str(path)).data_storage_version for path in (clips / "one").glob("*.lance")} == {"2.1"}


def test_a_row_holds_what_was_decoded(corpus: Corpus, clips: Path) -> None:
    rows = lance.dataset(str(clips / "one" / "train.lance")).take(list(range(4)), columns=COLUMNS).to_pylist()
    mono, stereo, silent, sound = (decode_row(row) for row in rows)
    assert [len(clip.frames) for clip in (mono, stereo, silent, sound)] == [3, 3, 3, 0]
    assert silent.audio is None
    assert mono.audio is not None
    assert stereo.audio is not None
    assert sound.audio is not None
    assert (mono.audio.shape[0], stereo.audio.shape[0]) == (1, 2)
    assert [text.audio_type for text in silent.texts] == ["verbal", "nonverbal", None]
    # `stereo` is 0.1 s to the end of 2 s: its middle 1.5 s are kept
    span = decode(corpus.media / "stereo.mkv", 0.1, None, frames=3, short_side=32, sample_rate=RATE)
    assert span.audio is not None
    np.testing.assert_array_equal(stereo.audio, span.audio[:, RATE // 5 : RATE // 5 + 12000])
    for jpeg, frame in zip(stereo.frames, span.frames, strict=True):
        decoded = decode_frame(jpeg)
        assert decoded.shape == (43, 32, 3)
        assert np.abs(decoded.astype(int) - np.asarray(frame)).mean() < 3


HEAVY = """
import sys
from pathlib import Path
import clip4vla.clips.ingest as stage
from tests.clips.conftest import AUDIO, CLIPS
stage.CHUNK = 2
clips = CLIPS.model_copy(update={"workers": 2})
stage.ingest(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), clips, AUDIO)
"""


@pytest.fixture
def heavy(tmp_path: Path) -> Corpus:
    """Clips that take a while, so that a run can be killed between two chunks."""
    found = write_corpus(tmp_path, {"train": 12, "val": 3})
    times = [index / 30 for index in range(180)]
    write_media(found.media / "mono.mkv", "libx264", "pcm_s16le", times=times, size=(480, 360))
    return found


def test_a_run_that_is_killed_continues_and_gives_the_same(
    heavy: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "clips" / "killed"
    arguments = [str(heavy.manifest), str(heavy.media), str(out)]
    process = subprocess.Popen(
        [sys.executable, "-c", HEAVY, *arguments], cwd=REPOSITORY, process_group=0, stderr=subprocess.DEVNULL
    )
    notes = out.with_name(".killed.partial") / "chunks"
    deadline = time.monotonic() + 240
    while len(list(notes.glob("*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    kill_process_tree(process.pid)
    process.wait()
    assert not out.exists()
    done = len(list(notes.glob("*.json")))
    assert 2 <= done < 8
    (notes.parent / "train.lance" / "data").mkdir(parents=True)
    (notes.parent / "train.lance" / "data" / "half.lance").write_bytes(b"a fragment that was being written")

    monkeypatch.setattr(stage, "CHUNK", 2)
    ingest(heavy.manifest, heavy.media, out, CLIPS, AUDIO)
    assert f"continuing: {2 * done} of 15 clips are already there" in capsys.readouterr().err
    ingest(heavy.manifest, heavy.media, tmp_path / "clean", CLIPS, AUDIO)
    assert content(out) == content(tmp_path / "clean")
    [stored] = (out / "train.lance" / "data").iterdir()
    assert stored.name != "half.lance"
    assert not notes.parent.exists()


class KilledError(Exception):
    """Stands for a kill at this moment."""


def kill_at(call: int, usual: Callable[..., object]) -> Callable[..., object]:
    """`usual`, but for one call, which ends the run before it is done."""
    calls = count(1)

    def killed(*given: object) -> object:
        if next(calls) == call:
            raise KilledError
        return usual(*given)

    return killed


@pytest.mark.parametrize(("before", "call"), [("write_json", 2), ("_remove", 2), ("commit", 1)])
def test_a_run_that_is_killed_while_fragments_are_written_decodes_nothing_again(
    corpus: Corpus, clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str, call: int
) -> None:
    monkeypatch.setattr(stage, "CHUNK", 2)
    monkeypatch.setattr(fragments, "RECORDS", 4)
    monkeypatch.setattr(fragments, before, kill_at(call, getattr(fragments, before)))
    with pytest.raises(KilledError):
        ingest(corpus.manifest, corpus.media, tmp_path / "out", CLIPS, AUDIO)
    monkeypatch.setattr(stage, "ingest_chunk", kill_at(1, stage.ingest_chunk))
    ingest(corpus.manifest, corpus.media, tmp_path / "out", CLIPS, AUDIO)
    assert content(tmp_path / "out") == content(clips / "one")
    train = lance.dataset(str(tmp_path / "out" / "train.lance"))
    assert [fragment.physical_rows for fragment in train.get_fragments()] == [4, 4, 3]
    assert len(list((tmp_path / "out" / "train.lance" / "data").iterdir())) == 3


def test_a_file_replaced_while_fragments_are_written_has_its_fragment_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "CHUNK", 2)
    monkeypatch.setattr(fragments, "RECORDS", 4)
    monkeypatch.setattr(fragments, "commit", kill_at(1, fragments.commit))
    corpus = write_corpus(tmp_path, {"train": 11, "val": 2})
    with pytest.raises(KilledError):
        ingest(corpus.manifest, corpus.media, tmp_path / "out", CLIPS, AUDIO)
    (corpus.media / "sound.wav").write_bytes((corpus.media / "silent.mp4").read_bytes())
    for name in ("out", "clean"):
        ingest(corpus.manifest, corpus.media, tmp_path / name, CLIPS, AUDIO)
    assert content(tmp_path / "out") == content(tmp_path / "clean")


def test_other_limits_decode_again_what_was_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path, {"train": 5, "val": 1})
    strict = CLIPS.model_copy(update={"limits": MediaLimits(max_bytes=1000), "max_reject_fraction": 1.0})
    monkeypatch.setattr(fragments, "commit", kill_at(1, fragments.commit))
    monkeypatch.setattr(ManifestSummary, "check", lambda *_: None)
    with pytest.raises(KilledError):
        ingest(corpus.manifest, corpus.media, tmp_path / "out", strict, AUDIO)
    assert ingest(corpus.manifest, corpus.media, tmp_path / "out", CLIPS, AUDIO).accepted == 6


def test_a_dask_cluster_gives_the_same(corpus: Corpus, clips: Path, tmp_path: Path) -> None:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        on_cluster = CLIPS.model_copy(update={"dask": cluster.scheduler_address})
        result = ingest(corpus.manifest, corpus.media, tmp_path / "dask", on_cluster, AUDIO)
    assert result.accepted == 17
    assert content(tmp_path / "dask") == content(clips / "one")


def test_a_dask_cluster_that_is_not_there_is_an_error(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "CLUSTER_ANSWERS_S", 1)
    nowhere = CLIPS.model_copy(update={"dask": "tcp://127.0.0.1:9"})
    with pytest.raises(ValueError, match=r"no Dask cluster answers at clips\.dask 'tcp://127\.0\.0\.1:9'"):
        ingest(corpus.manifest, corpus.media, tmp_path / "out", nowhere, AUDIO)


def test_other_settings_start_from_the_beginning(
    corpus: Corpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    strict = CLIPS.model_copy(update={"max_reject_fraction": 0.0})
    out = tmp_path / "clips"
    with pytest.raises(ValueError, match=r"17 accepted, 1 rejected \(corrupt 1\)"):
        ingest(corpus.manifest, corpus.media, out, strict, AUDIO)
    assert not out.exists()
    ingest(corpus.manifest, corpus.media, out, CLIPS.model_copy(update={"frames": 2}), AUDIO)
    assert "continuing" not in capsys.readouterr().err
    assert {len(frames) for frames in content(out)["val"]["frames"].to_pylist()} == {2}


def test_after_too_many_rejects_only_they_are_decoded_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "CHUNK", 4)
    corpus = write_corpus(tmp_path, {"train": 8, "val": 2}, broken=1)
    strict, out = CLIPS.model_copy(update={"max_reject_fraction": 0.0}), tmp_path / "clips"
    out.mkdir()
    (out / "before").touch()
    with pytest.raises(ValueError, match="1 rejected"):
        ingest(corpus.manifest, corpus.media, out, strict, AUDIO)
    assert [path.name for path in out.iterdir()] == ["before"]
    (corpus.media / "broken.mp4").write_bytes((corpus.media / "silent.mp4").read_bytes())  # repaired
    result = ingest(corpus.manifest, corpus.media, out, strict, AUDIO)
    assert (result.accepted, result.rejected.total()) == (11, 0)
    assert "continuing: 10 of 11 clips" in capsys.readouterr().err
    assert content(out)["train"]["clip_id"].to_pylist() == [*(f"train{i}" for i in range(8)), "broken0"]


def test_a_file_that_was_replaced_since_a_failed_run_is_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage, "CHUNK", 4)
    corpus = write_corpus(tmp_path, {"train": 8, "val": 2}, broken=1)
    strict, lenient = (CLIPS.model_copy(update={"max_reject_fraction": share}) for share in (0.0, 1.0))
    with pytest.raises(ValueError, match="1 rejected"):
        ingest(corpus.manifest, corpus.media, tmp_path / "clips", strict, AUDIO)
    replaced = corpus.media / next(read_manifest(corpus.manifest)).media
    other = next(path for path in sorted(corpus.media.iterdir()) if path not in (replaced, corpus.media / "broken.mp4"))
    replaced.write_bytes(other.read_bytes())
    for name in ("clips", "clean"):
        ingest(corpus.manifest, corpus.media, tmp_path / name, lenient, AUDIO)
    assert content(tmp_path / "clips") == content(tmp_path / "clean")


def test_nothing_accepted_is_an_error(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, {}, broken=2)
    with pytest.raises(ValueError, match="nothing was accepted"):
        ingest(
            corpus.manifest, corpus.media, tmp_path / "out", CLIPS.model_copy(update={"max_reject_fraction": 1}), AUDIO
        )
    assert not (tmp_path / "out").exists()
