"""Each benchmark at a tiny size: one JSON line, with figures that fit together. Speed itself is not tested."""

import builtins
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import (
    app,
    audio_frontend,
    contrastive,
    ingest,
    loader,
    retrieval,
    scale,
    search,
    serving,
    startup,
    threads,
)
from benchmarks.clips import write_clips
from tests.project import REPOSITORY

TRAIN_STEP = """
import sys
sys.modules |= dict.fromkeys(("lance", "av", "mlflow", "prefect"))  # an import of them fails
from benchmarks.train_step import main
main(sys.argv[1:])
"""


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Run a benchmark with arguments; the results in the one line that it prints."""

    def of(main: Callable[[list[str]], None], *arguments: object) -> dict[str, Any]:
        main([str(argument) for argument in arguments])
        [line] = capfd.readouterr().out.splitlines()
        facts = json.loads(line)
        assert main.__module__ == f"benchmarks.{facts['benchmark']}"
        results: dict[str, Any] = facts["results"]
        return results

    return of


AUDIO = ("--clips", 2, "--tiles", 1, "--repeats", 1, "--device", "cpu")


def without_librosa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audio_frontend, "find_spec", lambda _: None)


def test_audio_front_end(run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    without_librosa(monkeypatch)
    results = run(audio_frontend.main, *AUDIO)
    assert results.keys() == {"mono", "stereo"}
    for figures in results.values():
        assert figures.keys() == {"ms_per_clip", "ms_per_audio_s", "audio_s_per_s", "log_mel_audio_s_per_s"}
        assert figures["ms_per_audio_s"] == pytest.approx(1000 / figures["audio_s_per_s"])
        cores = torch.get_num_threads()
        assert figures["audio_s_per_s"] * figures["ms_per_clip"] * cores == pytest.approx(1792, rel=1e-3)


@pytest.mark.parametrize(("off_db", "same"), [(0.0, True), (0.1, False)])
def test_audio_front_end_must_be_librosas(
    run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch, off_db: float, same: bool
) -> None:
    def of_librosa(channels: np.ndarray) -> np.ndarray:
        front_end = audio_frontend.Measured(torch.device("cpu"), 1, 1, 1).front_end
        waves = torch.from_numpy(channels).unsqueeze(1)
        log_mel, _ = front_end.log_mel(waves, torch.full((3,), waves.shape[2]))
        return log_mel[:, 0].numpy() + off_db

    monkeypatch.setattr(audio_frontend, "find_spec", lambda _: object())
    monkeypatch.setattr(audio_frontend, "librosa_log_mel", of_librosa)
    if not same:
        with pytest.raises(SystemExit, match="isn't librosa's"):
            run(audio_frontend.main, *AUDIO)
        return
    for figures in run(audio_frontend.main, *AUDIO).values():
        assert figures["largest_difference"] < 1e-4
        for part in ("", "log_mel_"):
            ratio = figures[f"{part}audio_s_per_s"] / figures["librosa_audio_s_per_s"]
            assert figures[f"{part}times_librosa"] == pytest.approx(ratio)


def test_retrieval(run: Callable[..., dict[str, Any]]) -> None:
    sizes = ("--queries", 20, "--galleries", 10, 40, "--width", 8, "--resamples", 10, "--repeats", 1)
    rows = run(retrieval.main, *sizes)["galleries"]
    assert [(row["queries"], row["gallery"]) for row in rows] == [(20, 10), (20, 40)]
    for row in rows:
        parts = [row[f"{part}_s"] for part in ("similarity", "ranks", "scores", "bootstrap")]
        assert min(parts) > 0
        assert row["total_s"] == pytest.approx(sum(parts))
        assert row["queries_per_s"] == pytest.approx(20 / row["total_s"])


def test_contrastive(run: Callable[..., dict[str, Any]]) -> None:
    sizes = ("--batches", 3072, 4096, "--naive-up-to", 3072, "--width", 8, "--repeats", 1, "--device", "cpu")
    first, second = run(contrastive.main, *sizes)["batches"]
    matrix = 4 * 3072**2
    assert 3 * matrix < first["naive"]["bytes"] < 6 * matrix
    assert first["naive_memory_is"] == "measured"
    assert first["times_less_memory"] == first["naive"]["bytes"] / first["blockwise"]["bytes"]
    assert first["times_faster"] == first["naive"]["ms"] / first["blockwise"]["ms"]
    assert second["naive"] is None
    assert second["naive_memory_is"] == "extrapolated"
    grown = (4096 / 3072) ** 2 * first["naive"]["bytes"]
    assert second["times_less_memory"] == pytest.approx(grown / second["blockwise"]["bytes"])
    assert "times_faster" not in second


def test_the_naive_loss_is_the_blockwise_one() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(9, 4, generator=generator) for _ in "ab")
    scale = torch.tensor([3.0])
    torch.testing.assert_close(contrastive.naive_info_nce(a, b, scale), contrastive.info_nce(a, b, scale))


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_loader(run: Callable[..., dict[str, Any]], workers: int) -> None:
    sizes = ("--clips", 6, "--frames", 2, "--size", 40, "--image-size", 32, "--seconds", 0.1)
    results = run(loader.main, *sizes, "--batch", 4, "--batches", 2, "--workers", workers)
    assert results["clips_per_s"] == results["clips_per_s_per_process"] > 0
    parts = results["ms_per_clip"]
    assert min(parts["read"], parts["jpeg"]) > 0
    assert parts["read"] + parts["jpeg"] + parts["rest"] == pytest.approx(parts["all"])


def test_ingest(run: Callable[..., dict[str, Any]]) -> None:
    media = ("--videos", 2, "--video-seconds", 2, "--width", 96, "--height", 64, "--fps", 5)
    results = run(ingest.main, *media, "--clips", 6, "--clip-seconds", 1, "--frames", 2, "--size", 32, "--workers", 1)
    assert results["killed_is_the_same"]
    assert results["dask_is_the_same"]
    assert results["clips_per_s"] == results["clips_per_s_per_core"] > 0
    assert results["bytes_per_clip"] > 32_000  # a second of sound


def test_search(run: Callable[..., dict[str, Any]]) -> None:
    results = run(search.main, "--clips", 300, "--width", 16, "--queries", 5, "--top", 3)
    assert results["scan_is_exact"]
    assert results["recall"] == 1.0  # too few clips for a vector index: both searches are scans
    for times in (results["scan"], results["index"]):
        assert 0 < times["median_ms"] <= times["p95_ms"]


@pytest.mark.slow
def test_app(run: Callable[..., dict[str, Any]]) -> None:
    results = run(app.main, "--clips", 50, "--requests", 3)
    assert 0 < results["p50_ms"] <= results["p95_ms"]
    assert results["rows_per_s"] == results["requests_per_s"] > 0


@pytest.mark.slow
def test_serving(run: Callable[..., dict[str, Any]]) -> None:
    results = run(serving.main, "--clients", 2, "--requests", 4, "--rows", 3)
    assert results.keys() == {"text", "texts", "media"}
    assert results["texts"]["rows_per_s"] == pytest.approx(3 * results["texts"]["requests_per_s"])
    for figures in results.values():
        assert 0 < figures["p50_ms"] <= figures["p95_ms"]


def test_without_lance_the_error_names_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = builtins.__import__

    def without_lance(name: str, *rest: Any) -> Any:
        if name == "lance":
            raise ModuleNotFoundError("No module named 'lance'")
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_lance)
    with pytest.raises(SystemExit, match=r"No module named 'lance'; `pip install pylance av`"):
        write_clips(tmp_path / "clips.lance")


@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_train_step(precision: str) -> None:
    """In a process of its own, since it joins a process group; packages that a GPU machine may lack are hidden."""
    sizes = "--architecture stamp-small --batch 2 --large-batches 4 --frames 1 --tiles 1 --max-tokens 8 --device cpu"
    length = f"--variants eager recomputed budget cached --warmup 1 --steps 1 --precision {precision} --peak-tflops 0.5"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", TRAIN_STEP, *sizes.split(), *length.split()]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    [line] = done.stdout.splitlines()
    rows = json.loads(line)["results"]["rows"]
    assert [(row["variant"], row["batch"], row["micro_batch"], row["cached_gradients"]) for row in rows] == [
        *(("eager", 2, 2, False), ("recomputed", 2, 2, False), ("budget", 2, 2, False), ("cached", 4, 2, True)),
    ]
    assert [row["recomputed_blocks"] == row["blocks"] for row in rows] == [False, True, False, False]
    for row in rows:
        assert row["precision"] == precision
        assert row["clips_per_s"] == pytest.approx(row["batch"] / row["s_per_step"])
        assert row["tflops"] == pytest.approx(row["clips_per_s"] * row["useful_tflop_per_clip"])
        assert row["mfu"] == pytest.approx(row["tflops"] / row["peak_tflops"])
        assert row["useful_tflop_per_clip"] == pytest.approx(rows[0]["useful_tflop_per_clip"])
        assert row["peak_tflops"] == 0.5
        assert row["peak_memory_gb"] > row["batch_gb"] > 0


def test_startup(run: Callable[..., dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = ("-c", "import clip4vla, time; time.sleep(0.3)")
    monkeypatch.setattr(startup, "PROCESSES", {"sleep": sleep})
    code = tmp_path / "code"
    (code / "clip4vla").mkdir(parents=True)
    (code / "clip4vla/__init__.py").write_text("from pathlib import Path; Path('seen').touch()")
    seconds = run(startup.main, tmp_path, "--code", code, "--repeats", 2)["seconds"]
    assert (tmp_path / "seen").is_file()
    [figures] = [found["sleep"] for found in seconds.values()]
    assert figures["wall_s"] >= 0.3
    monkeypatch.setattr(startup, "PROCESSES", {"failing": ("-c", "raise SystemExit('no')")})
    with pytest.raises(RuntimeError, match=r"(?s)raise SystemExit.* failed with .*no"):
        run(startup.main, tmp_path, "--repeats", 1)


def test_threads(run: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SETTINGS", dict(list(threads.SETTINGS.items())[-1:]))  # each starts two processes
    times = run(threads.main, "--repeats", 1)["ms"]
    assert times.keys() == threads.SETTINGS.keys()
    assert all(of.keys() == {"alone", "beside a busy process"} and min(of.values()) > 0 for of in times.values())


@pytest.mark.slow
def test_scale(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    results = run(scale.main, "--clips", 700, "--beside", 200, "--batches", 2, "--repeats", 1, "--directory", tmp_path)
    assert results.keys() == {"200_clips", "700_clips"}
    for clips, figures in ((200, results["200_clips"]), (700, results["700_clips"])):
        assert figures["manifest"]["accepted"] == figures["ingest"]["accepted"] == figures["read"]["clips"] == clips
        assert figures["read"]["right"]
        assert figures["read"]["open_peak_bytes"] <= figures["read"]["read_peak_bytes"]
    assert list(tmp_path.iterdir()) == []
