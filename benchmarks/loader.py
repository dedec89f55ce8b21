"""`python -m benchmarks.loader`: clips a second from a Lance data set to batches in memory.

The data set is written first, of noise, whose JPEGs are larger and slower to decode than those of real pictures.
Batches come by the loader of a training, to `--device`: random access, frames and crops drawn, texts tokenised.
`ms_per_clip`, the parts of the work in one process, shows what limits it. The files are in the system's cache.
"""

import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.clips import write_clips
from benchmarks.measure import add_device, median_seconds, report
from clip4vla.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from clip4vla.clips.loader import TrainingBatches

CPU = torch.device("cpu")
SAMPLE_RATE = 16000
MAX_TOKENS = 32
PREFETCHED = 4
"""Batches that each worker has ready; the clock starts when as many have been taken."""


def make_batches(clips: Path, settings: Namespace) -> "TrainingBatches":
    """The batches of a training over `clips`, as many as are timed and those before."""
    from clip4vla.clips.dataset import ClipDataset
    from clip4vla.clips.loader import TrainingBatches
    from clip4vla.clips.sampler import StepSampler
    from clip4vla.clips.transform import ClipTransform

    dataset = ClipDataset([clips])
    samples = int(settings.seconds * SAMPLE_RATE)
    tokenizer = Tokenizer(MAX_TOKENS)
    transform = ClipTransform(settings.frames, settings.image_size, samples, tokenizer, circular_shift=True)
    steps_per_epoch = max(1, len(dataset) // settings.batch)
    epochs = -(-(settings.batches + warmup(settings)) // steps_per_epoch)
    sampler = StepSampler(dataset.sizes, None, settings.batch, epochs, seed=0)
    return TrainingBatches(dataset, transform, sampler, rank=0, world_size=1)


def warmup(settings: Namespace) -> int:
    """Batches before the clock starts."""
    return 1 + PREFETCHED * settings.workers


def clips_per_second(batches: "TrainingBatches", settings: Namespace) -> float:
    """Over `settings.batches` batches, the workers having started and filled their queues before."""
    from clip4vla.clips.loader import training_loader

    loaded = iter(training_loader(batches, 0, settings.workers))
    for _ in islice(loaded, warmup(settings)):
        pass
    start = time.perf_counter()
    clips = sum(len(batch.to(settings.device)) for batch in islice(loaded, settings.batches))
    return clips / (time.perf_counter() - start)


def parts(batches: "TrainingBatches") -> dict[str, float]:
    """Milliseconds a clip of one batch, made in this process: reading, decoding JPEGs, the rest, and in all."""
    from clip4vla.clips.format import decode_frame

    indices = batches.sampler.indices(0)
    clips = batches.dataset.take(indices)
    frames = [frame for clip in clips for frame in clip.frames]
    seconds = {
        "read": median_seconds(lambda: batches.dataset.take(indices), CPU, warmup=1, repeats=5),
        "jpeg": median_seconds(lambda: [decode_frame(frame) for frame in frames], CPU, warmup=1, repeats=5),
        "all": median_seconds(lambda: batches[0], CPU, warmup=1, repeats=5),
    }
    seconds["rest"] = seconds["all"] - seconds["read"] - seconds["jpeg"]
    return {name: 1e3 * value / len(clips) for name, value in seconds.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Write clips, load them, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    add_device(parser)
    parser.add_argument("--workers", type=int, default=0, help="processes; 0 prepares batches in this one")
    parser.add_argument("--clips", type=int, default=512, help="stored")
    parser.add_argument("--frames", type=int, default=8, help="stored of a clip, and read")
    parser.add_argument("--size", type=int, default=112, help="pixels of a stored frame's side")
    parser.add_argument("--image-size", type=int, default=112, help="pixels that are cropped of it")
    parser.add_argument("--seconds", type=float, default=10.0, help="of sound")
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=20, help="timed")
    settings = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        samples = int(settings.seconds * SAMPLE_RATE)
        clips = write_clips(
            Path(directory) / "clips.lance",
            settings.clips,
            frames=settings.frames,
            size=settings.size,
            samples=samples,
            channels=settings.channels,
        )
        batches = make_batches(clips, settings)
        speed = clips_per_second(batches, settings)
        results = {
            "clips_per_s": speed,
            "clips_per_s_per_process": speed / max(1, settings.workers),
            "ms_per_clip": parts(batches),
        }
    report("loader", settings.device, settings, results, packages=("pylance", "pillow"))


if __name__ == "__main__":
    main()
