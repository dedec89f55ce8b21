"""What the benchmarks share: the machine, times with a warm-up, peak memory, and the one JSON line that each prints.

In: something to call. Out: seconds, bytes, and on stdout nothing but the report; what libraries print goes to stderr.
"""

import ctypes
import json
import os
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

import torch

from clip4vla.tracking.provenance import hardware
from clip4vla.utils.machine import own_memory, peak_memory, return_freed_memory

GLIBC_KEEPS = 1 << 25
"""Bytes of a block that glibc, after a while, no longer keeps when it is freed."""


def add_device(parser: ArgumentParser) -> None:
    """Let `--device` choose where to compute: a GPU where there is one."""
    default = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=torch.device, default=torch.device(default), help=f"default: {default}")


def median_seconds(call: Callable[[], object], device: torch.device, *, warmup: int = 2, repeats: int = 10) -> float:
    """Median seconds of a call, after `warmup` calls that don't count, each timed until the GPU has finished it."""
    for _ in range(warmup):
        call()
    return median(_timed(call, device) for _ in range(repeats))


def _timed(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(call: Callable[[], object], device: torch.device) -> int | None:
    """Most bytes that a call holds at once beyond what was held before; None where the system can't tell.

    On a GPU it is torch's own count; on a CPU the process's resident memory, which Linux counts, and which is exact
    for blocks from 32 MB on: smaller ones may be taken from memory that is kept, or add to it.
    """
    if device.type == "cuda":
        _wait(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        _wait(device)
        return torch.cuda.max_memory_allocated(device) - before
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)  # what was freed but kept would not show when it is taken again,
    return_freed_memory(1 << 16)  # nor does the system see what is freed but kept from now on
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = own_memory()
    call()
    peak = peak_memory() - before
    return_freed_memory(GLIBC_KEEPS)
    return max(0, peak)


@contextmanager
def silence() -> Iterator[None]:
    """Send to stderr what is printed on stdout, where only the report belongs; libraries import here first."""
    with redirect_stdout(sys.stderr):
        yield


def report(
    benchmark: str,
    device: torch.device,
    settings: Namespace,
    results: Mapping[str, Any],
    packages: tuple[str, ...] = (),
) -> None:
    """Print one JSON line: what was measured, when, on what, with which versions and settings.

    Args:
        packages: distributions whose versions matter, beside torch.
        settings: the command line.
        results: figures by name, each with its unit in the name.
    """
    facts = {
        "benchmark": benchmark,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": hardware(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "versions": {name: found for name in ("torch", *packages) if (found := _version(name))},
        "settings": {
            key: str(value) if isinstance(value, torch.device | Path) else value
            for key, value in vars(settings).items()
        },
        "results": results,
    }
    print(json.dumps(facts), flush=True)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
