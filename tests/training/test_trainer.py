"""Trainings in processes of their own: killed, stopped, resumed, and their results.

One training on two ranks is asked to stop, resumed, and one of its ranks is killed; in the end it must have the same
weights as one that ran undisturbed. What a killed launcher leaves: see `tests/test_pipeline_killed.py`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.clips import write_clips
from clip4vla.config import TrainerConfig
from clip4vla.model.pretrained import load_model
from clip4vla.training.checkpoints import (
    CheckpointMetadata,
    begin_checkpoint,
    checkpoint_name,
    finish_checkpoint,
    newest_checkpoint,
)
from clip4vla.training.launch import launch, launch_with_retries
from clip4vla.training.spec import read_run
from clip4vla.training.throughput import StepProgress
from clip4vla.training.trainer import _Checkpoints, check_finite
from clip4vla.utils.supervise import wait_until_none_in
from tests.project import REPOSITORY, TINY_ARCHITECTURE
from tests.training.small_training import Training
from tests.training.specs import STEPS, make_spec

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the package, a tiny architecture and clips, where this process works."""
    directory = tmp_path_factory.mktemp("project")
    shutil.copytree(REPOSITORY / "clip4vla", directory / "clip4vla", ignore=shutil.ignore_patterns("__pycache__"))
    (directory / "clip4vla/model/architectures/tiny.json").write_text(json.dumps(TINY_ARCHITECTURE))
    write_clips(directory / "train.lance")
    before = Path.cwd()
    os.chdir(directory)
    yield directory
    os.chdir(before)


@pytest.fixture(scope="module")
def through(project: Path) -> Path:
    """The run result of an undisturbed training."""
    spec = make_spec(project, "through")
    launch(spec)
    assert not spec.checkpoints.exists()
    return spec.out


def test_two_ranks_leave_a_result_that_loads_without_deepspeed(through: Path) -> None:
    program = (
        f"import sys; from pathlib import Path; from clip4vla.model.pretrained import load_model\n"
        f"load_model(Path({str(through)!r})); assert 'deepspeed' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    facts = read_run(through)
    assert (facts["task"], facts["audio_token"], facts["world_size"]) == ("pretraining", "sample", 2)
    terms = {"text_audio", "video_audio", "text_video", "audio_audio"}
    assert facts["metrics"].keys() == {*terms, "loss", "clips_per_second", "data_wait", "memory_gb", "tflops"}
    assert facts["metrics"]["tflops"] > 0
    assert facts["metrics"]["loss"] == pytest.approx(sum(facts["metrics"][term] for term in terms), rel=1e-4)


def test_stopped_killed_and_resumed_it_ends_with_the_same_weights(project: Path, through: Path) -> None:
    spec = make_spec(project, "disturbed")
    checkpoints = spec.checkpoints / spec.fingerprint()
    of_another_training = spec.checkpoints / "0123456789abcdef"
    begin_checkpoint(of_another_training, 30)
    finish_checkpoint(
        of_another_training, CheckpointMetadata(step=30, world_size=2, zero_stage=0, micro_batch_size=4), keep=2
    )

    asked_to_stop = Training(make_spec(project, "disturbed", loader_workers=1))
    assert asked_to_stop.until(3), asked_to_stop.end()
    asked_to_stop.process.send_signal(signal.SIGTERM)
    status, errors = asked_to_stop.end()
    assert asked_to_stop.steps[0] == 1
    assert status == 128 + signal.SIGTERM, errors
    stopped = newest_checkpoint(checkpoints)
    assert stopped is not None
    assert 3 <= stopped.step < STEPS
    wait_until_none_in(project)

    rank_killed = Training(spec)
    assert rank_killed.until(stopped.step + 4), rank_killed.end()
    assert rank_killed.steps[0] == stopped.step + 1
    os.kill(rank_killed.ranks()[1], signal.SIGKILL)
    status, errors = rank_killed.end()
    assert status == 1
    assert "RuntimeError: the training failed: rank 1 ended first, by SIGKILL" in errors
    wait_until_none_in(project)
    killed = newest_checkpoint(checkpoints)
    assert killed is not None
    assert killed.step % 3 == 0
    assert killed.step > stopped.step
    last = {checkpoint_name(step) for step in (killed.step + 3, killed.step, killed.step - 3, stopped.step)}
    assert {path.name for path in checkpoints.glob("step*")} <= last

    launch(spec)
    expected, found = load_model(through).state_dict(), load_model(spec.out).state_dict()
    assert all(torch.equal(found[key], weight) for key, weight in expected.items())
    assert not spec.checkpoints.exists()


class Saving:
    """In place of an engine and a run: what was saved."""

    def __init__(self) -> None:
        self.saved: list[int] = []

    def is_finite(self) -> bool:
        return True

    def save(self, step: int, keep: int) -> None:
        assert keep == 2
        self.saved.append(step)

    def flush(self) -> None: ...


def test_a_checkpoint_is_due_after_so_many_steps_or_minutes_and_none_is_written_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("clip4vla.training.trainer.time.monotonic", lambda: now)
    saving, trainer = Saving(), TrainerConfig(checkpoint_every=5)
    assert trainer.checkpoint_minutes == 15
    checkpoints = _Checkpoints(trainer, saving, saving, 7, StepProgress(20, 8, shows=False))  # type: ignore[arg-type]
    checkpoints.save(7)  # resumed from it
    assert [step for step in range(8, 20) if checkpoints.is_due(step)] == [10, 15]
    now += 14 * 60
    assert not checkpoints.is_due(8)
    now += 60
    assert checkpoints.is_due(8)
    checkpoints.save(8)
    checkpoints.save(8)
    assert not checkpoints.is_due(9)
    assert saving.saved == [8]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("term", ["text_audio", "loss"])
def test_the_first_value_that_is_not_finite_stops_the_training_and_is_named(term: str, value: float) -> None:
    check_finite(6, {"text_audio": 1.0, "video_audio": 2.0, "loss": 3.0})
    with pytest.raises(ValueError, match=rf"^step 7: {term} is {value}\. The training stops there"):
        check_finite(6, {"video_audio": 2.0, "text_audio": 1.0, "loss": 3.0} | {term: value})


def test_a_training_that_diverges_keeps_its_last_checkpoint_and_is_not_tried_again(project: Path) -> None:
    spec = make_spec(project, "diverging")
    optimizer = spec.training.optimizer.model_copy(update={"lr": 10.0, "weight_decay": 1e6, "warmup": 0.0})
    training = spec.training.model_copy(update={"optimizer": optimizer})
    diverging = spec.model_copy(update={"training": training})
    diverging = diverging.model_copy(update={"trainer": spec.trainer.model_copy(update={"checkpoint_every": 1})})
    with pytest.raises(ValueError, match=r"^step \d+: .*(nan|inf)"):
        launch_with_retries(diverging)
    assert not diverging.out.exists()
    kept = newest_checkpoint(diverging.checkpoints / diverging.fingerprint())
    assert kept is None or kept.step < STEPS
