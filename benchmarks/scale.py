"""`python -m benchmarks.scale`: a corpus of ten million clips, from the records to random reads, beside smaller ones.

The clips are tiny, and nothing is decoded: what is measured is all that depends on their number. Of each size a
manifest is written, with one media file for 30 clips as in HowTo100M, ingested, and opened; an epoch is put in order
and clips are read in that order, a batch at a time. The ingestion of the last one, if it has several fragments, is
killed with SIGKILL twice, when half the chunks are there and when half the fragments are, and run again. Each part has
processes of its own, whose peak memory is reported. The reads of all sizes are repeated in turns, from the system's
cache.

Exits with 1 where clips are missing or in another order, or a kill cost more than one chunk or fragment of each worker.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.measure import report
from clip4vla.clips import fragments
from clip4vla.clips import ingest as stage
from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.sampler import StepSampler
from clip4vla.config import AudioConfig, ClipsConfig
from clip4vla.corpora import manifest
from clip4vla.media import decode
from clip4vla.records import SourceRecord, Text
from clip4vla.utils.files import atomic_file
from clip4vla.utils.machine import peak_memory
from clip4vla.utils.supervise import kill_process_tree

CLIPS_PER_VIDEO = 30
VIDEOS_PER_FOLDER = 1000
CLIPS = ClipsConfig(frames=1, size=32)
USUAL_CHUNK, USUAL_FRAGMENT = stage.ingest_chunk, fragments.write_fragment
PART = "import sys; from benchmarks import scale; scale.PARTS[sys.argv[1]](*sys.argv[2:])"


def video_of(clip: int) -> str:
    """Path of the media file of a clip, without its suffix."""
    video = clip // CLIPS_PER_VIDEO
    return f"{video // VIDEOS_PER_FOLDER:04d}/video{video:07d}"


def records(clips: int) -> Iterator[SourceRecord]:
    """One after the other, as an adapter yields them."""
    for clip in range(clips):
        start = 10.0 * (clip % CLIPS_PER_VIDEO)
        text = Text(f"and now we put it there, which is step {clip}", "verbal")
        yield SourceRecord(f"clip{clip:08d}", video_of(clip), "train", (text,), start, start + 10.0)


def write_manifest(directory: str, clips: str) -> None:
    """Part `manifest`: empty media files, and the records of all clips."""
    media = Path(directory) / "media"
    for clip in range(0, int(clips), CLIPS_PER_VIDEO):
        file = media / f"{video_of(clip)}.mp4"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    started = time.perf_counter()
    summary = manifest.write_manifest(records(int(clips)), media, Path(directory) / "manifest")
    seconds = time.perf_counter() - started
    print(json.dumps({"accepted": summary.accepted, "s": seconds, "peak_bytes": peak_memory()}))


def ingest(directory: str, workers: str, samples: str) -> None:
    """Part `ingest`: all of `clip4vla clips` but the decoding."""
    stage.ingest_chunk = partial(ingest_chunk, int(samples))
    fragments.write_fragment = write_fragment
    at = Path(directory)
    config = CLIPS.model_copy(update={"workers": int(workers)})
    started = time.perf_counter()
    summary = stage.ingest(
        at / "manifest" / "manifest.parquet", at / "media", at / "clips", config, AudioConfig(sample_rate=16_000)
    )
    seconds = time.perf_counter() - started
    print(json.dumps({"accepted": summary.accepted, "s": seconds, "peak_bytes": peak_memory()}))


def ingest_chunk(samples: int, spec: stage.IngestSpec, chunk: stage.Chunk) -> int:
    """What a worker does with a chunk, with so many samples of noise in place of what a file holds.

    Each chunk has its own noise: of equal sounds in all chunks Lance would store a dictionary.
    """
    rng = np.random.default_rng(list(chunk.name.encode()))
    decode.decode = lambda *_, **__: decode.Span((), rng.integers(-9000, 9000, (1, samples), np.int16))
    count = USUAL_CHUNK(spec, chunk)
    _note_memory(spec.directory)
    return count


def write_fragment(directory: Path, group: fragments.Group) -> int:
    """What a worker does for a fragment."""
    count = USUAL_FRAGMENT(directory, group)
    _note_memory(directory)
    return count


def _note_memory(directory: Path) -> None:
    """Leave the peak memory of this worker, which may be killed meanwhile, beside the data sets."""
    with atomic_file(directory.parent / f"worker-{os.getpid()}") as partial:
        partial.write_text(str(peak_memory()))


def read(directory: str, batches: str, batch: str) -> None:
    """Part `read`: open a data set, put an epoch in order, read clips in that order; what each takes."""
    import lance  # noqa: F401  # its import is no part of opening

    before = peak_memory()
    started = time.perf_counter()
    dataset = ClipDataset([Path(directory) / "clips" / "train.lance"])
    sampler = StepSampler(dataset.sizes, None, int(batch), 1, seed=0)
    opened = time.perf_counter()
    after_opening = peak_memory()
    order = sampler.indices(0)
    ordered = time.perf_counter()
    after_order = peak_memory()
    dataset.take(order)
    reading, cpu = time.perf_counter(), time.process_time()
    steps = range(1, min(int(batches), sampler.steps - 1) + 1)
    right = 0
    for step in steps:
        wanted = sampler.indices(step)
        right += sum(
            clip.clip_id == f"clip{index:08d}" for clip, index in zip(dataset.take(wanted), wanted, strict=True)
        )
    seconds, cpu = time.perf_counter() - reading, time.process_time() - cpu
    figures = {
        "clips": len(dataset),
        "open_s": opened - started,
        "order_s": ordered - opened,
        "clips_per_s": len(steps) * int(batch) / seconds,
        "cpu_us_per_clip": 1e6 * cpu / (len(steps) * int(batch)),
        "right": right == len(steps) * int(batch),
        "imports_bytes": before,
        "open_peak_bytes": after_opening,
        "order_peak_bytes": after_order,
        "read_peak_bytes": peak_memory(),
    }
    print(json.dumps(figures))


PARTS: dict[str, Callable[..., None]] = {"manifest": write_manifest, "ingest": ingest, "read": read}


def start(part: str, *arguments: object) -> subprocess.Popen[bytes]:
    """A process, with a group of its own, that does one part."""
    command = [sys.executable, "-c", PART, part, *map(str, arguments)]
    return subprocess.Popen(command, process_group=0, stdout=subprocess.PIPE)


def finish(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The figures of a part."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a part ended with status {process.returncode}")
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def kill_when_there(process: subprocess.Popen[bytes], file: Path) -> None:
    """Kill the process and all that it has started as soon as the file is there.

    Raises:
        RuntimeError: the process ended before.
    """
    while not file.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the ingestion ended, with status {process.returncode}, before there was {file}")
        time.sleep(0.01)
    kill_process_tree(process.pid)
    process.communicate()


def groups_of(clips: int) -> list[fragments.Group]:
    """The fragments of a corpus."""
    return fragments.plan({"train": range(0, clips, stage.CHUNK)}, {"train": clips})


def ingest_with_kills(directory: Path, clips: int, workers: int, samples: int) -> dict[str, Any]:
    """The ingestion, killed among its chunks and among its fragments; what had to be done again, and the last run."""
    unfinished = directory / ".clips.partial"
    groups = groups_of(clips)
    files = unfinished / "chunks" / "train.lance" / "data"
    middle = groups[len(groups) // 2].name
    kill_when_there(start("ingest", directory, workers, samples), fragments.chunk_note(unfinished, middle))
    kept = sum(1 for _ in (unfinished / "chunks").glob("*.json"))
    lost = {"chunks_kept": kept, "chunks_repeated": sum(1 for _ in files.iterdir()) - kept}
    started = time.perf_counter()
    kill_when_there(start("ingest", directory, workers, samples), unfinished / "fragments" / f"{middle}.json")
    lost["until_second_kill_s"] = round(time.perf_counter() - started)
    kept = sum(1 for _ in (unfinished / "fragments").glob("*.json"))
    lost |= {
        "fragments_kept": kept,
        "fragments_repeated": sum(1 for _ in (unfinished / "train.lance" / "data").iterdir()) - kept,
    }
    return {**finish(start("ingest", directory, workers, samples)), **lost}


def build(directory: Path, clips: int, settings: Namespace, with_kills: bool) -> dict[str, Any]:
    """Manifest and clips of one size; the figures of the two parts, memory of the workers included."""
    accepted = finish(start("manifest", directory, clips))
    if with_kills and len(groups_of(clips)) > 1:
        ingested = ingest_with_kills(directory, clips, settings.workers, settings.samples)
    else:
        ingested = finish(start("ingest", directory, settings.workers, settings.samples))
    ingested["worker_peak_bytes"] = max(int(file.read_text()) for file in directory.glob("worker-*"))
    stored = [file for file in (directory / "clips").rglob("*") if file.is_file()]
    ingested |= {
        "files": len(stored),
        "bytes_per_clip": sum(file.stat().st_size for file in stored) / clips,
    }
    shutil.rmtree(directory / "media")
    return {"manifest": accepted, "ingest": ingested}


def read_in_turns(directories: dict[int, Path], settings: Namespace) -> dict[int, dict[str, Any]]:
    """The figures of reading each size: medians of the repeats, the peaks of memory their greatest."""
    found: dict[int, list[dict[str, Any]]] = {clips: [] for clips in directories}
    for _ in range(settings.repeats):
        for clips, directory in directories.items():
            found[clips].append(finish(start("read", directory, settings.batches, settings.batch)))
    return {
        clips: {
            name: all(values) if name == "right" else max(values) if name.endswith("bytes") else median(values)
            for name, values in ((name, [figures[name] for figures in repeats]) for name in repeats[0])
        }
        for clips, repeats in found.items()
    }


def faults(clips: int, figures: dict[str, Any], workers: int) -> list[str]:
    """What is wrong with the figures of one size."""
    ingested = figures["ingest"]
    wrong = [] if figures["read"]["right"] else [f"{clips:,}: clips are in another order"]
    if not figures["manifest"]["accepted"] == ingested["accepted"] == figures["read"]["clips"] == clips:
        wrong.append(f"{clips:,}: clips are missing")
    for what in ("chunks", "fragments"):
        if ingested.get(f"{what}_repeated", 0) > workers:
            wrong.append(f"{clips:,}: {ingested[f'{what}_repeated']} {what} were done again")
    return wrong


def main(arguments: Sequence[str] | None = None) -> None:
    """Make corpora of all sizes, read them in turns, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--clips", type=int, default=10_000_000)
    parser.add_argument("--beside", type=int, nargs="*", default=[100_000, 1_000_000], help="clips of other corpora")
    parser.add_argument("--workers", type=int, default=0, help="processes that ingest; 0 means one per core")
    parser.add_argument("--samples", type=int, default=200, help="of the sound of a clip, two bytes each")
    parser.add_argument("--batch", type=int, default=64, help="clips that are read at a time")
    parser.add_argument("--batches", type=int, default=500, help="timed")
    parser.add_argument("--repeats", type=int, default=5, help="of the reads")
    parser.add_argument("--directory", type=Path, help="for the files, removed then: 0.1 kB a clip, its sound, twice")
    settings = parser.parse_args(arguments)
    settings.workers = settings.workers or os.cpu_count() or 1
    if settings.directory is not None:
        settings.directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.directory) as temporary:
        sizes = [*settings.beside, settings.clips]
        directories = {clips: Path(temporary) / str(clips) for clips in sizes}
        found = {
            clips: build(directory, clips, settings, with_kills=clips == settings.clips)
            for clips, directory in directories.items()
        }
        for clips, figures in read_in_turns(directories, settings).items():
            found[clips]["read"] = figures
    del settings.directory  # no matter where, for the figures
    report("scale", torch.device("cpu"), settings, {f"{clips}_clips": found[clips] for clips in sizes}, ("pylance",))
    if wrong := [fault for clips in sizes for fault in faults(clips, found[clips], settings.workers)]:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
