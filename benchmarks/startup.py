"""`python -m benchmarks.startup PROJECT`: how long commands, and the processes of stages, take from a cold start.

PROJECT is a folder with a champion and an index in `data/index`, such as `make repro` and `clip4vla index` leave.
Several `--code` directories are measured in turn, so that revisions can be compared in one run. Each figure is the
least of `--repeats` processes: the wall time, and the CPU time of the process and those that it waited for, which other
work on the machine hardly changes.
"""

import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import report

RUN = ("-P", "-m", "clip4vla")
MODULES = ("pipeline.data", "pipeline.pretrain", "pipeline.evaluate", "pipeline.promote", "training.trainer")
"""What the processes of stages import; the last one is a rank's."""
PROCESSES: dict[str, tuple[str, ...]] = {
    "--help": (*RUN, "--help"),
    "champion": (*RUN, "champion"),
    "search": (*RUN, "search", "the sound of a bat"),
} | {f"import {module}": ("-P", "-c", f"import clip4vla.{module}") for module in MODULES}
"""Arguments of Python, which doesn't look for code in the working directory."""


def time_process(arguments: Sequence[str], project: Path, code: Path) -> tuple[float, float]:
    """Wall and CPU seconds of a process with the package in `code`, which must succeed.

    Raises:
        RuntimeError: it fails; the message has its last words.
    """
    environment = {**os.environ, "PYTHONPATH": str(code.resolve())}
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *arguments], cwd=project, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} failed with {code}: {said.decode(errors='replace')[-500:]}")
    return wall, usage.ru_utime + usage.ru_stime


def measure(settings: Namespace) -> dict[str, Any]:
    """Seconds by the folder of the code and by process."""
    found: dict[str, Any] = {code.name: {} for code in settings.code}
    for name, arguments in PROCESSES.items():
        times: dict[Path, list[tuple[float, float]]] = {code: [] for code in settings.code}
        for _ in range(settings.repeats):
            for code in settings.code:
                times[code].append(time_process(arguments, settings.project, code))
        for code, pairs in times.items():
            wall, cpu = (round(min(seconds), 2) for seconds in zip(*pairs, strict=True))
            found[code.name][name] = {"wall_s": wall, "cpu_s": cpu}
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Time all processes and print the report."""
    parser = ArgumentParser(prog="python -m benchmarks.startup", description=main.__doc__)
    parser.add_argument("project", type=Path)
    here, of_code = [Path(__file__).parents[1]], "repositories, in folders of different names"
    parser.add_argument("--code", type=Path, nargs="+", default=here, help=of_code)
    parser.add_argument("--repeats", type=int, default=5)
    settings = parser.parse_args(arguments)
    packages = ("mlflow", "deepspeed", "open_clip_torch")
    settings.code = [code.resolve() for code in settings.code]
    results = {"seconds": measure(settings)}
    settings.project, settings.code = settings.project.name, [code.name for code in settings.code]
    report("startup", torch.device("cpu"), settings, results, packages)


if __name__ == "__main__":
    main()
