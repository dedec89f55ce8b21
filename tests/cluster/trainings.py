"""The small training as a job: its command, how far it is, and what it left."""

import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from benchmarks.clips import write_clips
from clip4vla.training.checkpoints import newest_checkpoint
from clip4vla.training.spec import TrainSpec
from tests.cluster.machines import wait_for
from tests.cluster.slurm import Slurm
from tests.project import REPOSITORY
from tests.training import small_training

TEMPLATE = REPOSITORY / "slurm/train.sbatch"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}
"""Of weights that were trained on another number of ranks."""
TRAIN = """import sys
from pathlib import Path
from clip4vla.training.launch import launch_with_retries
from clip4vla.training.spec import TrainSpec
try:
    launch_with_retries(TrainSpec.read(Path(sys.argv[1])))
except (ValueError, RuntimeError) as error:
    sys.exit(f"clip4vla: {error}")
"""


def make_spec(directory: Path, steps: int, **trainer: object) -> TrainSpec:
    """A training in `directory`, with a rank a node, in which nothing is drawn at random by rank."""
    if not (directory / "train.lance").exists():
        write_clips(directory / "train.lance", small_training.CLIPS)
    spec = small_training.make_spec(directory, "training", steps, ranks=1)
    settings = spec.trainer.model_copy(update={"checkpoint_every": 10_000, **trainer})
    # the size of a step depends on gradients, not on their sign alone, which rounding can change
    optimizer = spec.training.optimizer.model_copy(update={"eps": 0.01})
    training = spec.training.model_copy(update={"circular_shift": False, "optimizer": optimizer})
    audio = spec.audio.model_copy(update={"freq_mask_fraction": 0.0, "time_mask_fraction": 0.0})
    return spec.model_copy(update={"trainer": settings, "training": training, "audio": audio})


def command(spec: TrainSpec) -> list[str]:
    """The command that trains by `spec`."""
    spec.write(spec.root / "training.json")
    (spec.root / "train.py").write_text(TRAIN)
    return [sys.executable, "train.py", "training.json"]


class Job:
    """A training that was submitted with the template."""

    def __init__(self, slurm: Slurm, spec: TrainSpec, *options: str) -> None:
        self.slurm, self.spec = slurm, spec
        self.log = spec.root / "job.log"
        self.id = slurm.submit(spec.root, f"--output={self.log}", *options, str(TEMPLATE), *command(spec))

    def output(self) -> str:
        return self.log.read_text() if self.log.is_file() else ""

    def steps(self) -> list[int]:
        """The steps that it printed, in order."""
        return [int(step) for step in re.findall(r"^\s*step +(\d+)/", self.output(), re.MULTILINE)]

    def until(self, step: int) -> None:
        """Wait for a step that is printed."""
        wait_for(lambda: self.steps() and self.steps()[-1] >= step, f"step {step}", lambda: self.output())

    def end(self) -> dict[str, str]:
        """Wait until Slurm has ended it for good; what it says of it."""

        def ended() -> dict[str, str] | None:
            facts = self.slurm.job(self.id)
            return facts if facts["JobState"] in ("COMPLETED", "FAILED", "CANCELLED") else None

        return wait_for(ended, f"the end of job {self.id}", self.output)

    def restarted(self) -> None:
        """Wait until Slurm has queued it again."""
        wait_for(lambda: self.slurm.job(self.id)["Restarts"] != "0", "a restart", self.output)

    def checkpoint(self) -> int:
        """The step of the newest checkpoint; 0 where there is none."""
        found = newest_checkpoint(self.spec.checkpoints / self.spec.fingerprint())
        return found.step if found else 0


def train_here(spec: TrainSpec, name: str = "training") -> TrainSpec:
    """Train by `spec` on this machine, into a run result and checkpoints of the name."""
    spec = spec.model_copy(update={"out": spec.root / "runs" / name, "checkpoints": spec.root / "checkpoints" / name})
    subprocess.run(
        command(spec), cwd=spec.root, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, check=True
    )
    return spec


def assert_same(a: TrainSpec, b: TrainSpec) -> None:
    """The weights of two trainings are the same to the last bit."""
    first, second = (load_file(spec.out / "model.safetensors") for spec in (a, b))
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def assert_close(a: TrainSpec, b: TrainSpec) -> None:
    """The weights of two trainings are the same but for rounding."""
    first, second = (load_file(spec.out / "model.safetensors") for spec in (a, b))
    for name, weight in first.items():
        torch.testing.assert_close(weight, second[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
