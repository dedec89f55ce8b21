"""Mutated media and annotation files: each must come out as content or as a reason, in bounded memory and time.

Seeds are an .mp4 and an .mp3 that are written here, the files of a folder, and small tables of every adapter's kind. A
mutation overwrites, removes or repeats bytes. Whatever isn't content or a reason fails: another error, too much time or
memory, or a process that ends. The same seed gives the same inputs.
"""

import random
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import TimeoutError as WorkerTimeoutError
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from benchmarks.measure import report
from clip4vla.media.encode import encode, encode_mp3
from clip4vla.utils.machine import peak_memory
from clip4vla.utils.progress import track

AT_ONCE = 100
"""Inputs of a process."""
PATIENCE = 4
"""Limits of time of one input after which its process counts as dead; the start of the process is in it."""
FAILURES = ("raised", "slow", "large", "died")
ANNOTATIONS = {
    "folder/texts.csv": 'path,text,start,end,split\na.mp4,"waves, and gulls",0,10,train\nb.wav,a bell,,,test\n',
    "folder/texts.jsonl": '{"path": "a.mp4", "text": "a bell"}\n{"path": "b.mp4", "text": "rain", "start": 1.5}\n',
    "clotho/clotho_captions_development.csv": "file_name,caption_1,caption_2,caption_3,caption_4,caption_5\n"
    "a b.wav,Rain falls,Rain,It rains,Wet,Drops fall\n",
    "audiocaps/train.csv": "audiocap_id,youtube_id,start_time,caption\n1,abcdefghijk,30,Rain falls\n2,bcd,10,A bell\n",
    "vatex/vatex_training_v1.0.json": '[{"videoID": "Ptf_2VRj-V0_000122_000132", "enCap": ["a drummer", "a band"]}]',
    "msrvtt/MSRVTT_data.json": '{"videos": [{"video_id": "video0", "split": "train"}], '
    '"sentences": [{"video_id": "video0", "caption": "a bell"}]}',
    "audioset/eval_segments.csv": '# comment\nabcdefghijk, 30.000, 40.000, "/m/09x0r"\n',
    "howto100m/caption.json": '{"abcdefghijk": {"start": [0.5, 6], "end": [5.5, 14], "text": ["we clean", "a chain"]}}',
}
"""A table of each adapter's kind, by adapter and file."""
BESIDE = {
    "audioset": ("class_labels_indices.csv", 'index,mid,display_name\n0,/m/09x0r,"Speech"\n'),
    "howto100m": ("HowTo100M_v1.csv", "video_id,category_1,category_2,rank,task_id\nabcdefghijk,a,b,1,2\n"),
}
"""What an adapter needs beside it."""


@dataclass(frozen=True)
class Outcome:
    """What became of one input."""

    kind: str
    """`used`, `read`, a reason, or one of FAILURES."""
    seconds: float
    peak_bytes: int
    """Of the process, up to the end of this input."""
    what: str = ""
    """Of a failure: which input, and the error."""


Task = partial[Outcome]
"""What makes and tries the input of a number."""


def mutate(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to eight places overwritten, removed, repeated or swapped."""
    mutated = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        start = rng.randrange(max(1, len(mutated)))
        length = min(rng.choice((1, 1, 2, 4, 8, 64, 4096)), len(mutated) - start)
        other = rng.randrange(max(1, len(mutated)))
        match rng.randrange(5):
            case 0:
                mutated[start : start + length] = rng.randbytes(length)
            case 1:
                mutated[start : start + length] = bytes([rng.choice((0, 255))]) * length
            case 2:
                del mutated[start : start + length]
            case 3:
                mutated[other:other] = mutated[start : start + length]
            case _:
                mutated[other : other + length] = mutated[start : start + length]
    return bytes(mutated[: rng.randrange(len(mutated))] if mutated and rng.random() < 0.05 else mutated)


def try_media(seeds: Sequence[Path], settings: Namespace, number: int) -> Outcome:
    """Inspect a mutation of one of `seeds`, which depends on the seed of `settings` and the number only."""
    from clip4vla.config import MediaLimits
    from clip4vla.media.inspect import inspect

    limits = MediaLimits(max_decode_s=settings.max_seconds / 2)

    def look_at(path: Path) -> str:
        found = inspect(path, frames=4, short_side=64, sample_rate=16_000, limits=limits)
        return found.reason or "used"

    rng = random.Random(f"media {settings.seed} {number}")
    original = rng.choice(seeds)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, f"{number}{original.suffix}")
        path.write_bytes(mutate(original.read_bytes(), rng))
        return _try(look_at, path, f"media {number} of {original.name}", settings)


def try_annotations(settings: Namespace, number: int) -> Outcome:
    """Read a mutated annotation file, as far as the manifest; a `ValueError` that names the file is a reason."""
    rng = random.Random(f"annotations {settings.seed} {number}")
    name = rng.choice(sorted(ANNOTATIONS))
    adapter, _, file = name.partition("/")
    with tempfile.TemporaryDirectory() as directory:
        annotations = Path(directory, adapter)
        annotations.mkdir()
        if adapter in BESIDE:
            (annotations / BESIDE[adapter][0]).write_text(BESIDE[adapter][1], encoding="utf-8")
        (annotations / file).write_bytes(mutate(ANNOTATIONS[name].encode(), rng))
        return _try(_read_annotations, annotations, f"annotations {number} of {name}", settings)


def _read_annotations(annotations: Path) -> str:
    from clip4vla.corpora.base import find_adapter
    from clip4vla.corpora.manifest import write_manifest

    media = annotations.parent / "media"
    media.mkdir()
    (media / "a.mp4").touch()
    try:
        write_manifest(find_adapter(annotations.name)(annotations), media, annotations.parent / "out")
    except ValueError as error:
        if str(annotations) not in str(error):
            raise
        return "refused"
    return "read"


def _try(call: Callable[[Path], str], path: Path, what: str, settings: Namespace) -> Outcome:
    started = time.monotonic()
    try:
        kind, why = call(path), ""
    except Exception as error:  # whatever else is raised is what this looks for
        kind, why = "raised", f"{what}: {error!r}"
    seconds = time.monotonic() - started
    peak = peak_memory()  # of the process so far
    if seconds > settings.max_seconds:
        kind, why = "slow", f"{what}: {seconds:.1f} s"
    elif peak > settings.max_gigabytes * 1e9:
        kind, why = "large", f"{what}: {peak / 1e9:.2f} GB"
    return Outcome(kind, seconds, peak, why)


def write_seeds(directory: Path) -> list[Path]:
    """A second of moving picture and tone as .mp4 and .mp3."""
    frames = np.random.default_rng(0).integers(0, 255, (8, 48, 64, 3), dtype=np.uint8)
    wave = (np.sin(np.arange(16_000) / 6) / 2).astype(np.float32)
    video, sound = directory / "seed.mp4", directory / "seed.mp3"
    encode(video, frames, 8, wave, 16_000)
    sound.write_bytes(encode_mp3((wave[None] * 32_767).astype(np.int16), 16_000))
    return [video, sound]


def _batches(first: int, total: int) -> list[range]:
    return [range(start, min(start + AT_ONCE, first + total)) for start in range(first, first + total, AT_ONCE)]


def _run(settings: Namespace, seeds: list[Path]) -> Iterator[Outcome]:
    """The outcomes of all inputs, by processes that end after a batch."""
    tasks: list[tuple[Task, range]] = [
        *((partial(try_media, seeds, settings), numbers) for numbers in _batches(settings.first, settings.media)),
        *((partial(try_annotations, settings), numbers) for numbers in _batches(settings.first, settings.annotations)),
    ]
    with ThreadPoolExecutor(settings.workers) as pool:
        for outcomes in pool.map(partial(_run_batch, settings), *zip(*tasks, strict=True)):
            yield from outcomes


def _run_batch(settings: Namespace, task: Task, numbers: range) -> list[Outcome]:
    """The outcomes of a batch; an input whose process dies or hangs is one failure, and another process goes on."""
    outcomes: list[Outcome] = []
    while len(outcomes) < len(numbers):
        with get_context("spawn").Pool(1) as pool:
            results = pool.imap(task, numbers[len(outcomes) :])
            try:
                while len(outcomes) < len(numbers):
                    outcomes.append(results.next(PATIENCE * settings.max_seconds))
            except WorkerTimeoutError:
                outcomes.append(Outcome("died", 0.0, 0, f"{task.func.__name__} {numbers[len(outcomes)]}"))
    return outcomes


def main(arguments: Sequence[str] | None = None) -> None:
    """Try all inputs, print one JSON line, and fail if one of them did."""
    parser = ArgumentParser(prog="python -m benchmarks.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--media", type=int, default=30_000, help="mutated media files")
    parser.add_argument("--annotations", type=int, default=7_000, help="mutated annotation files")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first input of each kind, to go on from")
    parser.add_argument("--seeds", type=Path, default=Path("tests/data/media"), help="folder of media to mutate, too")
    parser.add_argument("--max-seconds", type=float, default=30.0, help="for an input")
    parser.add_argument("--max-gigabytes", type=float, default=1.0, help="of a process")
    parser.add_argument("--workers", type=int, default=1, help="processes at once")
    settings = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as directory:
        seeds = [*write_seeds(Path(directory)), *sorted(path for path in settings.seeds.glob("*") if path.is_file())]
        outcomes = list(track(_run(settings, seeds), settings.media + settings.annotations, "inputs"))
    failed = [outcome for outcome in outcomes if outcome.kind in FAILURES]
    results = {
        "inputs": len(outcomes),
        "by_outcome": dict(Counter(outcome.kind for outcome in outcomes)),
        "most_seconds": max((outcome.seconds for outcome in outcomes), default=0.0),
        "peak_bytes": max((outcome.peak_bytes for outcome in outcomes), default=0),
        "failures": [outcome.what for outcome in failed],
    }
    settings.seeds = str(settings.seeds)
    report("fuzz", torch.device("cpu"), settings, results, ("av",))
    if failed:
        sys.exit(f"{len(failed)} inputs failed")


if __name__ == "__main__":
    main()
