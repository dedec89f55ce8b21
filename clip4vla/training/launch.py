"""A job in, its run result out: torchrun starts the ranks, retries from the last checkpoint, and dies well."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from clip4vla.params import TrainerParams
from clip4vla.training.job import Job

GRACE_S = 60.0
"""Seconds a training has to write its checkpoint when it is asked to stop."""


def ranks_here(trainer: TrainerParams) -> int:
    """Processes of a training on this node."""
    return trainer.ranks or max(1, torch.cuda.device_count())


def torchrun_command(job_file: Path, ranks: int, logs: Path) -> list[str]:
    """The command that starts `ranks` ranks on this node; rank 0 prints, each leaves a file under `logs`."""
    return [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
        *("--log-dir", str(logs), "--redirects", "3", "--tee", "3", "--local-ranks-filter", "0"),
        *("-m", "clip4vla.training.run", str(job_file)),
    ]


def launch(job: Job) -> None:
    """Train `job` in processes of its own and wait for them.

    Raises:
        RuntimeError: the training failed; the message names the rank's last words. A checkpoint may be there, from
            which the same job goes on.
    """
    job.checkpoints.mkdir(parents=True, exist_ok=True)
    job_file = job.checkpoints / "job.json"
    job.write(job_file)
    ranks = ranks_here(job.trainer)
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // ranks))}
    with tempfile.TemporaryDirectory() as logs:
        process = subprocess.Popen(torchrun_command(job_file, ranks, Path(logs)), env=environment)
        try:
            code = process.wait()
        finally:
            _end(process)
        if code:
            raise RuntimeError(f"the training ended with status {code}. {_last_words(Path(logs))}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process that still runs to stop, and make it stop."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _last_words(logs: Path) -> str:
    """The last line of each rank's errors, by rank."""
    words = []
    for log in sorted(logs.rglob("stderr.log"), key=lambda path: int(path.parent.name)):
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        if lines:
            words.append(f"rank {log.parent.name}: {lines[-1]}")
    return "; ".join(words)
