"""A small pretraining on synthetic clips, in processes that can be killed."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil

from clip4vla.config import (
    AudioConfig,
    ClipsConfig,
    InferenceConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainingConfig,
    TrainerConfig,
)
from clip4vla.training.spec import Corpus, TrainSpec
from clip4vla.utils.supervise import children
from tests.project import REPOSITORY

CLIPS = 16
CLIPS_PER_STEP = 8
PATIENCE_S = 60.0
"""Time in which a process that is about to end must have ended."""
STORED = ClipsConfig(frames=1, size=72)
"""How `benchmarks.clips` stores its clips."""
MODEL = ModelConfig(architecture="stamp-small")
AUDIO = AudioConfig(hop=256, tiles=3)


def make_spec(directory: Path, name: str, steps: int = 30, **trainer: object) -> TrainSpec:
    """A pretraining with every kind of term on two ranks, on the clips of `directory`/train.lance.

    Args:
        directory: where clips, checkpoints, runs and MLflow's store are.
        name: of its checkpoints and its run result.
        steps: an even number of them.
        trainer: changes to the trainer's settings.
    """
    training = PretrainingConfig(
        text_video=1.0,
        audio_audio=0.5,
        epochs=steps * CLIPS_PER_STEP // CLIPS,
        batch_size=CLIPS_PER_STEP,
        micro_batch_size=2,
        frames=STORED.frames,
        max_tokens=12,
        circular_shift=True,
        optimizer=OptimizerConfig(lr=3e-3),
    )
    settings = TrainerConfig(ranks=2, precision="fp32", loader_workers=0, checkpoint_every=3, log_every=1)
    return TrainSpec(
        task="pretraining",
        seed=3,
        corpora=(Corpus(clips=directory / "train.lance", weight=1.0),),
        start_from=None,
        audio_token="sample",
        training=training,
        model=MODEL,
        audio=AUDIO,
        trainer=settings.model_copy(update=trainer),
        inference=InferenceConfig.of(STORED, training),
        root=directory,
        checkpoints=directory / "checkpoints" / name,
        out=directory / "runs" / name,
        run_id=None,
    )


class Training:
    """`launch(spec)` in a process that works in the spec's directory; its output is read line by line."""

    def __init__(self, spec: TrainSpec) -> None:
        spec_file = spec.root / "training.json"
        spec.write(spec_file)
        code = (
            f"from pathlib import Path; from clip4vla.training.spec import TrainSpec; "
            f"from clip4vla.training.launch import launch; launch(TrainSpec.read(Path({str(spec_file)!r})))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=spec.root,
            env=os.environ | {"PYTHONPATH": str(REPOSITORY), "PYTHONUNBUFFERED": ""},  # as where nobody sets it
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
        found = {_rank_of(child): child.pid for child in children(self.process.pid)}
        return {rank: pid for rank, pid in found.items() if rank is not None}

    def end(self, patience_s: float | None = PATIENCE_S) -> tuple[int, str]:
        """Wait for the process to end; its exit status and its standard error.

        Raises:
            TimeoutExpired: it is still there after `patience_s` seconds.
        """
        _, errors = self.process.communicate(timeout=patience_s)
        return self.process.returncode, errors


def _rank_of(process: psutil.Process) -> int | None:
    """The rank of a process; None of one that is not a rank, or has just ended."""
    try:
        rank = process.environ().get("RANK")
    except psutil.NoSuchProcess:
        return None
    return None if rank is None else int(rank)
