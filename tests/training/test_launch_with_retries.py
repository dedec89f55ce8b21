"""A training that fails is resumed from its last checkpoint, as long as each attempt gets further."""

from pathlib import Path

import pytest

from benchmarks.clips import write_clips
from clip4vla.training import launch as launcher
from clip4vla.training.checkpoints import CheckpointMetadata, begin_checkpoint, finish_checkpoint
from clip4vla.training.launch import launch_with_retries
from clip4vla.training.spec import TrainSpec
from tests.training.specs import make_spec


@pytest.fixture
def spec(tmp_path: Path) -> TrainSpec:
    write_clips(tmp_path / "train.lance")
    return make_spec(tmp_path, "spec")


class Attempts:
    """Stands in for `launch`: attempt i leaves a checkpoint at `steps[i]`, and fails if there is another."""

    def __init__(self, *steps: int) -> None:
        self.steps = list(steps)
        self.made = 0

    def __call__(self, spec: TrainSpec) -> None:
        step = self.steps[self.made]
        self.made += 1
        if step:
            begin_checkpoint(spec.checkpoints / spec.fingerprint(), step)
            finish_checkpoint(spec.checkpoints / spec.fingerprint(), CheckpointMetadata(step, 2, 0, 4), keep=1)
        if self.made < len(self.steps):
            raise RuntimeError(f"rank {self.made} ended first, by SIGKILL")


def test_a_training_is_resumed_as_often_as_it_gets_further(
    spec: TrainSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts = Attempts(3, 6, 30)
    monkeypatch.setattr(launcher, "launch", attempts)
    launch_with_retries(spec)
    assert attempts.made == 3
    assert capsys.readouterr().out.splitlines() == [
        "rank 1 ended first, by SIGKILL",
        "going on from the checkpoint of step 3",
        "rank 2 ended first, by SIGKILL",
        "going on from the checkpoint of step 6",
    ]


@pytest.mark.parametrize(("steps", "made"), [((0, 0), 1), ((3, 3, 3), 2), ((6, 6, 9), 2)])
def test_a_failure_without_a_new_checkpoint_is_raised(
    spec: TrainSpec, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...], made: int
) -> None:
    attempts = Attempts(*steps)
    monkeypatch.setattr(launcher, "launch", attempts)
    with pytest.raises(RuntimeError, match=f"rank {made} ended first"):
        launch_with_retries(spec)
    assert attempts.made == made


def test_a_training_that_is_asked_to_stop_stops_and_says_where(
    spec: TrainSpec, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(spec: TrainSpec) -> None:
        begin_checkpoint(spec.checkpoints / spec.fingerprint(), 3)
        finish_checkpoint(spec.checkpoints / spec.fingerprint(), CheckpointMetadata(3, 2, 0, 4), keep=1)
        raise SystemExit(143)

    monkeypatch.setattr(launcher, "launch", stop)
    with pytest.raises(SystemExit):
        launch_with_retries(spec)
    stopped = (
        "the training has stopped, because it was asked to; started again, it goes on from the checkpoint of step 3"
    )
    assert capsys.readouterr().out.splitlines() == [stopped]
