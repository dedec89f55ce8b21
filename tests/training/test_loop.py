"""Trainings in processes of their own: killed, stopped, resumed, and what they leave.

One story: a training on two ranks that is asked to stop, resumed, one of whose ranks is killed, and that comes out,
at last, with the very weights of one that ran through. What a killed launcher leaves: see `tests/test_pipeline.py`.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clip4vla.model.checkpoints import load_model
from clip4vla.training.checkpoints import (
    Notes,
    begin_checkpoint,
    checkpoint_name,
    finish_checkpoint,
    newest_checkpoint,
)
from clip4vla.training.job import Job, read_run
from clip4vla.training.launch import launch
from tests.project import REPOSITORY, TINY_ARCHITECTURE
from tests.training.jobs import STEPS, make_job, write_clips

pytestmark = pytest.mark.slow

PATIENCE_S = 60.0


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


class Training:
    """`launch(job)` in a process of its own, whose lines are read as they come."""

    def __init__(self, job: Job) -> None:
        job_file = job.root / "story.json"
        job.write(job_file)
        code = (
            f"from pathlib import Path; from clip4vla.training.job import Job; "
            f"from clip4vla.training.launch import launch; launch(Job.read(Path({str(job_file)!r})))"
        )
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=job.root, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.steps: list[int] = []

    def until(self, step: int) -> None:
        """Read until `step` is printed."""
        assert self.process.stdout is not None
        for output in self.process.stdout:
            found = re.match(r"\s*step +(\d+)/", output)
            self.steps += [int(found[1])] if found else []
            if self.steps and self.steps[-1] >= step:
                return
        raise AssertionError(f"ended before step {step}: {self.process.communicate()[1][-3000:]}")

    def ranks(self) -> dict[int, int]:
        """Process id by rank."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and parent_of(int(entry.name)) == self.process.pid:
                environment = (entry / "environ").read_bytes().split(b"\0")
                rank = [e for e in environment if e.startswith(b"RANK=")]
                found |= {int(rank[0].removeprefix(b"RANK=")): int(entry.name)} if rank else {}
        return found

    def end(self) -> tuple[int, str]:
        """Exit status and what it said on its errors."""
        _, errors = self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode, errors


def parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
    except (OSError, IndexError):
        return None


def working_in(directory: Path) -> list[int]:
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
    deadline = time.monotonic() + PATIENCE_S
    while left := working_in(directory):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def through(project: Path) -> Path:
    """The run result of a training that nothing happened to."""
    job = make_job(project, "through")
    launch(job)
    assert not job.checkpoints.exists()
    return job.out


def test_two_ranks_leave_a_result_that_loads_without_deepspeed(through: Path) -> None:
    program = (
        f"import sys; from pathlib import Path; from clip4vla.model.checkpoints import load_model\n"
        f"load_model(Path({str(through)!r})); assert 'deepspeed' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    facts = read_run(through)
    assert (facts["task"], facts["audio_token"], facts["world_size"]) == ("pretrain", "sample", 2)
    terms = {"text_audio", "video_audio", "text_video", "audio_audio"}
    assert facts["metrics"].keys() == {*terms, "loss", "clips_per_second"}
    assert facts["metrics"]["loss"] == pytest.approx(sum(facts["metrics"][term] for term in terms), rel=1e-4)


def test_stopped_killed_and_resumed_it_ends_with_the_same_weights(project: Path, through: Path) -> None:
    job = make_job(project, "story")
    checkpoints = job.checkpoints / job.fingerprint()
    of_another_training = job.checkpoints / "0123456789abcdef"
    begin_checkpoint(of_another_training, 30)
    finish_checkpoint(of_another_training, Notes(step=30, world_size=2, zero_stage=0), keep=2)

    asked_to_stop = Training(make_job(project, "story", loader_workers=1))
    asked_to_stop.until(3)
    asked_to_stop.process.send_signal(signal.SIGTERM)
    status, errors = asked_to_stop.end()
    assert asked_to_stop.steps[0] == 1
    assert status == 128 + signal.SIGTERM, errors
    stopped = newest_checkpoint(checkpoints)
    assert stopped is not None
    assert 3 <= stopped.step < STEPS
    wait_until_nobody_works_in(project)

    rank_killed = Training(job)
    rank_killed.until(stopped.step + 4)
    assert rank_killed.steps[0] == stopped.step + 1
    os.kill(rank_killed.ranks()[1], signal.SIGKILL)
    status, errors = rank_killed.end()
    assert status == 1
    assert "RuntimeError: the training failed: rank 1 ended first, by SIGKILL" in errors
    wait_until_nobody_works_in(project)
    killed = newest_checkpoint(checkpoints)
    assert killed is not None
    assert killed.step % 3 == 0
    assert killed.step > stopped.step
    last = {checkpoint_name(step) for step in (killed.step + 3, killed.step, killed.step - 3, stopped.step)}
    assert {path.name for path in checkpoints.glob("step*")} <= last

    launch(job)
    expected, found = load_model(through).state_dict(), load_model(job.out).state_dict()
    assert all(torch.equal(found[key], weight) for key, weight in expected.items())
    assert not job.checkpoints.exists()
