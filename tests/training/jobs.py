"""Trainings of tiny towers on a tiny data set of clips."""

from pathlib import Path

from benchmarks import small_training
from clip4vla.training.job import Job
from tests.training.tiny import AUDIO, MODEL

STEPS = 30


def make_job(directory: Path, name: str, **trainer: object) -> Job:
    """The small training with tiny towers."""
    job = small_training.make_job(directory, name, STEPS, **trainer)
    return job.model_copy(update={"model": MODEL, "audio": AUDIO})
