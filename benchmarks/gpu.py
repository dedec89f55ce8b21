"""`python -m benchmarks.gpu --out FILE`: all that a GPU can show, by one command, in one file.

The ceilings of the device (a copy, products of matrices) and the benchmarks of the front end, the losses, the train
step (eager, compiled, recomputed, with 1,024, 4,096 and 32,768 true negatives), the losses of bf16 against float32, and
the search of a gallery, each in a process of its own, over NCCL with one rank. A part that fails has its error in the
file, and the others go on. FILE is written after every part; the exit status is 1 where one failed.
"""

import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import median_seconds, report
from clip4vla.utils.files import write_json

LARGE = "--frames 1 --tiles 1 --variants cached --large-batches 32768 --batch 1024 --warmup 1 --steps 2"
PARTS: Mapping[str, str] = {
    "ceilings": "benchmarks.gpu --ceilings",
    "audio_frontend": "benchmarks.audio_frontend --clips 256",
    "train_step": "benchmarks.train_step --variants eager recomputed compiled",
    "train_step_4096": "benchmarks.train_step --variants cached --large-batches 4096 --warmup 1 --steps 2",
    "precision": "benchmarks.precision",
    "contrastive": "benchmarks.contrastive --batches 4096 32768 131072 --naive-up-to 32768",
    "retrieval": "benchmarks.retrieval --galleries 1000 100000 --resamples 100",
    "train_step_32768": f"benchmarks.train_step {LARGE}",
}
"""By name, the module and its arguments. 32,768 clips of one frame and one tile: with twelve and six, a batch takes
80 GB."""
SIDE, COPIED = 8192, 2 << 30
"""Rows of the matrices that are multiplied; bytes of the copy."""


def ceilings(device: torch.device) -> dict[str, float]:
    """What the device copies and multiplies in a second, measured."""
    source = torch.empty(COPIED, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    found = {"copied_tb_per_s": 2 * COPIED / median_seconds(lambda: target.copy_(source), device) / 1e12}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(SIDE, SIDE, device=device, dtype=dtype) for _ in "ab")
        found[f"{name}_tflops"] = 2 * SIDE**3 / median_seconds(partial(torch.matmul, a, b), device) / 1e12
    return found


def run(command: str) -> dict[str, Any]:
    """The report of a benchmark, or its error, and the seconds that it took."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-m", *command.split()], capture_output=True, text=True, check=False)
    lines = done.stdout.splitlines()
    seconds = round(time.monotonic() - started, 1)
    if done.returncode or not lines:
        return {"command": command, "seconds": seconds, "error": done.stderr[-2000:]}
    return {"command": command, "seconds": seconds, **json.loads(lines[-1])}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every part and write what it reports."""
    parser = ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--ceilings", action="store_true", help="print the ceilings alone")
    settings = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("there is no GPU here: torch.cuda.is_available() is false")
    if settings.ceilings:
        device = torch.device("cuda")
        report("gpu", device, settings, ceilings(device))
        return
    if settings.out is None:
        parser.error("--out is missing")
    found = dict[str, Any]()
    for name in settings.parts:
        found[name] = run(PARTS[name])
        print(f"{name}: {found[name].get('error', 'done')} ({found[name]['seconds']} s)", file=sys.stderr, flush=True)
        write_json(settings.out, found)
    if failed := [name for name, part in found.items() if "error" in part]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
