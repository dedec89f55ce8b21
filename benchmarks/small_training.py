"""A small pretraining on synthetic clips, and the processes that do it, which can be killed.

For `benchmarks.kill_resume` and for the tests of training.
"""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from clip4vla.params import load_params
from clip4vla.training.job import Corpus, Job

REPOSITORY = Path(__file__).parents[1]
CLIPS = 16
CLIPS_PER_STEP = 8
PATIENCE_S = 60.0
"""How long a process may take to end that is about to."""


def make_job(directory: Path, name: str, steps: int = 30, **trainer: object) -> Job:
    """A pretraining with every kind of term on two ranks, on the clips of `directory`/train.lance.

    Args:
        directory: where clips, checkpoints, runs and MLflow's store are.
        name: of its checkpoints and its run result.
        steps: an even number of them.
        trainer: changes to the trainer's settings.
    """
    params = load_params(REPOSITORY / "params.yaml")
    length = {"epochs": steps * CLIPS_PER_STEP // CLIPS, "batch_size": CLIPS_PER_STEP, "micro_batch_size": 2}
    settings = {"ranks": 2, "checkpoint_every": 3, "keep_checkpoints": 2, "log_every": 1, "loader_workers": 0}
    return Job(
        task="pretrain",
        seed=3,
        corpora=(Corpus(clips=directory / "train.lance", weight=1.0),),
        start_from=None,
        audio_token="sample",
        training=params.pretrain.model_copy(update=length | {"frames": 1, "words": 12, "audio_audio": 0.5}),
        model=params.model.model_copy(update={"architecture": "stamp-small", "weights": None}),
        audio=params.audio,
        trainer=params.trainer.model_copy(update=settings | {"precision": "fp32"} | trainer),
        root=directory,
        checkpoints=directory / "checkpoints" / name,
        out=directory / "runs" / name,
        run_id=None,
    )


class Training:
    """`launch(job)` in a process that works in the job's directory, and whose lines are read as they come."""

    def __init__(self, job: Job) -> None:
        job_file = job.root / "training.json"
        job.write(job_file)
        code = (
            f"from pathlib import Path; from clip4vla.training.job import Job; "
            f"from clip4vla.training.launch import launch; launch(Job.read(Path({str(job_file)!r})))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=job.root,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.steps: list[int] = []
        """Those that were printed so far."""

    def until(self, step: int) -> bool:
        """Read until `step` is printed; False where the process ended before."""
        assert self.process.stdout is not None
        for output in self.process.stdout:
            found = re.match(r"\s*step +(\d+)/", output)
            self.steps += [int(found[1])] if found else []
            if self.steps and self.steps[-1] >= step:
                return True
        return False

    def ranks(self) -> dict[int, int]:
        """Process id by rank, of those that have started."""
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
        ours = [pid for pid in pids if _parent_of(pid) == self.process.pid]
        return {rank: pid for pid in ours if (rank := _rank_of(pid)) is not None}

    def end(self, patience_s: float | None = PATIENCE_S) -> tuple[int, str]:
        """Wait for the process to end; exit status and what it said on its errors.

        Raises:
            TimeoutExpired: it is still there after `patience_s` seconds.
        """
        _, errors = self.process.communicate(timeout=patience_s)
        return self.process.returncode, errors


def _parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return None


def _rank_of(pid: int) -> int | None:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    found = re.search(rb"(?:^|\0)RANK=(\d+)", environment)
    return int(found[1]) if found else None


def _working_in(directory: Path) -> list[int]:
    """Other processes whose working directory is `directory`, zombies left out."""
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        try:
            here = Path(f"/proc/{pid}/cwd").readlink() == directory
        except OSError:  # gone, a zombie, or not ours
            continue
        found += [pid] if here and pid != os.getpid() else []
    return found


def wait_until_nobody_works_in(directory: Path) -> None:
    """Return when no process is left in `directory`.

    Raises:
        TimeoutError: one is still there after a minute.
    """
    deadline = time.monotonic() + PATIENCE_S
    while left := _working_in(directory):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still working in {directory}: {left}")
        time.sleep(0.1)
