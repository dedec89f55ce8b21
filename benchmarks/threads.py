"""`python -m benchmarks.threads`: a forward and backward pass alone and beside a busy process, by how threads wait.

Two threads share a small transformer, in a process of its own for each setting, since OpenMP reads it once. `ms` is the
median of a pass. The busy process computes on one core.
"""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from benchmarks.measure import median_seconds, report
from clip4vla.utils.threads import SPIN_COUNT

SETTINGS: Mapping[str, Mapping[str, str]] = {
    "OpenMP's own": {},
    "passive": {"OMP_WAIT_POLICY": "passive"},
    f"ours, GOMP_SPINCOUNT={SPIN_COUNT}": {"GOMP_SPINCOUNT": SPIN_COUNT},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
WIDTH, LENGTH, BATCH, LAYERS = 128, 18, 96, 4
"""A micro-batch of the embedded model's audio tower."""


def time_pass(repeats: int) -> float:
    """Median milliseconds of a forward and backward pass in this process."""
    layer = nn.TransformerEncoderLayer(WIDTH, 4, WIDTH, dropout=0.0, batch_first=True)
    tower = nn.TransformerEncoder(layer, LAYERS)
    hidden = torch.randn(BATCH, LENGTH, WIDTH)
    seconds = median_seconds(lambda: tower(hidden).sum().backward(), torch.device("cpu"), repeats=repeats)
    return 1000 * seconds


@contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    """A process that keeps a core busy, where one is wanted."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(settings: Namespace) -> dict[str, Any]:
    """Milliseconds by setting, alone and beside the busy process."""
    found: dict[str, Any] = {}
    for name, variables in SETTINGS.items():
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "GOMP_"))}
        environment = {**kept, "OMP_NUM_THREADS": "2", **variables}
        command = [sys.executable, "-m", "benchmarks.threads", "--pass", "--repeats", str(settings.repeats)]
        found[name] = {}
        for where in ("alone", "beside a busy process"):
            with busy_process(where != "alone"):
                done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            found[name][where] = round(json.loads(done.stdout), 1)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Time all settings and print the report."""
    parser = ArgumentParser(prog="python -m benchmarks.threads", description=main.__doc__)
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--pass", action="store_true", dest="one", help="time a pass in this process and print its ms")
    settings = parser.parse_args(arguments)
    if settings.one:
        print(json.dumps(time_pass(settings.repeats)))
        return
    report("threads", torch.device("cpu"), settings, {"ms": measure(settings)})


if __name__ == "__main__":
    main()
