"""A training that fails goes on from its last checkpoint, as long as that gets it further."""

from pathlib import Path

import pytest

from benchmarks.clips import write_clips
from clip4vla.training import launch as launcher
from clip4vla.training.checkpoints import Notes, begin_checkpoint, finish_checkpoint
from clip4vla.training.job import Job
from clip4vla.training.launch import launch_through
from tests.training.jobs import make_job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    write_clips(tmp_path / "train.lance")
    return make_job(tmp_path, "job")


class Attempts:
    """Stands in for `launch`: attempt i leaves a checkpoint at `steps[i]`, and fails if there is another."""

    def __init__(self, *steps: int) -> None:
        self.steps = list(steps)
        self.made = 0

    def __call__(self, job: Job) -> None:
        step = self.steps[self.made]
        self.made += 1
        if step:
            begin_checkpoint(job.checkpoints / job.fingerprint(), step)
            finish_checkpoint(job.checkpoints / job.fingerprint(), Notes(step, 2, 0), keep=1)
        if self.made < len(self.steps):
            raise RuntimeError(f"rank {self.made} ended first, by SIGKILL")


def test_a_training_goes_on_as_often_as_it_gets_further(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts = Attempts(3, 6, 30)
    monkeypatch.setattr(launcher, "launch", attempts)
    launch_through(job)
    assert attempts.made == 3
    assert capsys.readouterr().out.splitlines() == [
        "rank 1 ended first, by SIGKILL",
        "going on from the checkpoint of step 3",
        "rank 2 ended first, by SIGKILL",
        "going on from the checkpoint of step 6",
    ]


@pytest.mark.parametrize(("steps", "made"), [((0, 0), 1), ((3, 3, 3), 2), ((6, 6, 9), 2)])
def test_a_failure_that_a_checkpoint_does_not_cure_is_one(
    job: Job, monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...], made: int
) -> None:
    attempts = Attempts(*steps)
    monkeypatch.setattr(launcher, "launch", attempts)
    with pytest.raises(RuntimeError, match=f"rank {made} ended first"):
        launch_through(job)
    assert attempts.made == made


def test_a_training_that_is_asked_to_stop_stops(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(job: Job) -> None:
        begin_checkpoint(job.checkpoints / job.fingerprint(), 3)
        finish_checkpoint(job.checkpoints / job.fingerprint(), Notes(3, 2, 0), keep=1)
        raise SystemExit(143)

    monkeypatch.setattr(launcher, "launch", stop)
    with pytest.raises(SystemExit):
        launch_through(job)
