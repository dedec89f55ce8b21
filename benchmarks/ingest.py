"""`python -m benchmarks.ingest`: clips a second from video files to Lance, undisturbed, killed, and on a Dask cluster.

The media are made first: long videos of drifting noise at a usual size, of which each clip is a span, as in HowTo100M.
They are ingested three times: by processes of this machine; likewise, but killed with SIGKILL half-way and run again;
and by a cluster of `--workers` Dask workers. All three must hold the same rows in the same order; else it exits with 1.
"""

import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import report
from clip4vla.config import AudioConfig, ClipsConfig
from clip4vla.records import SourceRecord, Text
from clip4vla.utils.supervise import kill_process_tree

SAMPLE_RATE = 16_000
WHOLE_RUN = """
import sys
from pathlib import Path
from clip4vla.clips.ingest import ingest
from clip4vla.config import AudioConfig, ClipsConfig
manifest, media, out, clips, audio = sys.argv[1:]
ingest(Path(manifest), Path(media), Path(out), ClipsConfig.model_validate_json(clips),
       AudioConfig.model_validate_json(audio))
"""


def make_video(path: Path, settings: Namespace, seed: int) -> None:
    """A video of `settings.video_seconds`: coarse noise that drifts and flickers, and a soundtrack of noise."""
    from clip4vla.media.encode import encode

    rng = np.random.default_rng(seed)
    count = round(settings.video_seconds * settings.fps)
    encode(path, _frames(rng, count, settings), settings.fps, _hiss(rng, settings.video_seconds), SAMPLE_RATE)


def _frames(rng: np.random.Generator, count: int, settings: Namespace) -> NDArray[np.uint8]:
    blocks = rng.integers(0, 200, (settings.height // 8, settings.width // 8, 3), np.uint8)
    scene = blocks.repeat(8, 0).repeat(8, 1)
    grain = rng.integers(0, 16, (settings.height, settings.width, 1), np.uint8)
    return np.stack([np.roll(scene, 2 * i, axis=1) + np.roll(grain, 7 * i, axis=0) for i in range(count)])


def _hiss(rng: np.random.Generator, seconds: float) -> NDArray[np.float32]:
    return (0.1 * rng.standard_normal(round(seconds * SAMPLE_RATE))).astype(np.float32)


def write_corpus(directory: Path, settings: Namespace) -> Path:
    """The videos, and the manifest of their clips, whose path is returned."""
    from clip4vla.corpora.manifest import write_manifest

    media = directory / "media"
    media.mkdir(parents=True)
    for number in range(settings.videos):
        make_video(media / f"video{number}.mp4", settings, number)
    starts = np.random.default_rng(0).uniform(0, settings.video_seconds - settings.clip_seconds, settings.clips)
    records = [
        SourceRecord(
            f"clip{index}",
            f"video{index % settings.videos}.mp4",
            "train",
            (Text(f"clip {index}"),),
            float(start),
            float(start + settings.clip_seconds),
        )
        for index, start in enumerate(starts)
    ]
    write_manifest(records, media, directory / "manifest")
    return directory / "manifest" / "manifest.parquet"


class Ingestion:
    """The same clips, ingested in several ways."""

    def __init__(self, directory: Path, settings: Namespace) -> None:
        self.manifest = write_corpus(directory, settings)
        self.media = directory / "media"
        self.out = directory / "clips"
        self.settings = settings
        self.audio = AudioConfig(sample_rate=SAMPLE_RATE)
        self.config = ClipsConfig(
            frames=settings.frames,
            size=settings.size,
            max_seconds=settings.clip_seconds,
            workers=settings.workers,
        )

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """A process, with a group of its own, that ingests into `name`."""
        arguments = [str(self.manifest), str(self.media), str(self.out / name)]
        models = [self.config.model_dump_json(), self.audio.model_dump_json()]
        command = [sys.executable, "-c", WHOLE_RUN, *arguments, *models]
        return subprocess.Popen(command, process_group=0, stderr=subprocess.DEVNULL)

    def undisturbed(self, name: str) -> float:
        """Seconds of a complete run, the start of its processes included."""
        started = time.perf_counter()
        if self.start(name).wait():
            raise RuntimeError(f"ingesting into {self.out / name} failed")
        return time.perf_counter() - started

    def killed(self, name: str) -> int:
        """Kill a run with all its processes when half the clips are there, then run it again; chunks kept."""
        finished = self.out / f".{name}.partial" / "chunks"
        process = self.start(name)
        half = -(-self.settings.clips // 64) // 2
        while len(list(finished.glob("*.json"))) < half and process.poll() is None:
            time.sleep(0.01)
        kill_process_tree(process.pid)
        process.wait()
        kept = len(list(finished.glob("*.json")))
        self.undisturbed(name)
        return kept

    def on_cluster(self, name: str) -> float:
        """Seconds on a Dask cluster whose workers are already there."""
        from distributed import LocalCluster

        from clip4vla.clips.ingest import ingest

        workers = self.settings.workers or os.cpu_count()
        with LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None) as cluster:
            config = self.config.model_copy(update={"dask": cluster.scheduler_address})
            started = time.perf_counter()
            ingest(self.manifest, self.media, self.out / name, config, self.audio)
            return time.perf_counter() - started

    def same(self, one: str, other: str) -> bool:
        """Whether two runs hold the same rows in the same order."""
        import lance

        tables = [lance.dataset(str(self.out / name / "train.lance")).to_table() for name in (one, other)]
        return bool(tables[0].equals(tables[1]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Ingest in each way and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.ingest", description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--clip-seconds", type=float, default=10.0)
    parser.add_argument("--videos", type=int, default=4)
    parser.add_argument("--video-seconds", type=float, default=60.0)
    parser.add_argument("--width", type=int, default=640, help="of a video, in pixels")
    parser.add_argument("--height", type=int, default=360)
    parser.add_argument("--fps", type=int, default=25)
    parser.add_argument("--frames", type=int, default=12, help="stored of a clip")
    parser.add_argument("--size", type=int, default=256, help="shorter side of a stored frame")
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 means one per core")
    settings = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        ingestion = Ingestion(Path(directory), settings)
        seconds = ingestion.undisturbed("undisturbed")
        kept = ingestion.killed("killed")
        on_cluster = ingestion.on_cluster("dask")
        workers = settings.workers or os.cpu_count() or 1
        stored = sum(p.stat().st_size for p in (ingestion.out / "undisturbed").rglob("*") if p.is_file())
        same = {name: ingestion.same("undisturbed", name) for name in ("killed", "dask")}
    results = {
        "clips_per_s": settings.clips / seconds,
        "clips_per_s_per_core": settings.clips / seconds / workers,
        "dask_clips_per_s_per_core": settings.clips / on_cluster / workers,
        "bytes_per_clip": stored / settings.clips,
        "chunks_kept_by_the_kill": kept,
        **{f"{name}_is_the_same": equal for name, equal in same.items()},
    }
    report("ingest", torch.device("cpu"), settings, results, ("av", "pylance", "distributed"))
    if not all(same.values()):
        sys.exit("the clips differ")


if __name__ == "__main__":
    main()
