"""Trainings of tiny towers on a tiny data set of clips."""

from pathlib import Path

from clip4vla.training.spec import TrainSpec
from tests.training import small_training
from tests.training.tiny import AUDIO, MODEL

STEPS = 30


def make_spec(directory: Path, name: str, **trainer: object) -> TrainSpec:
    """The small training with tiny towers."""
    spec = small_training.make_spec(directory, name, STEPS, **trainer)
    return spec.model_copy(update={"model": MODEL, "audio": AUDIO})
