"""Starting ranks: one training at a time, this node or several, and signals left as they were."""

import fcntl
import signal
from pathlib import Path

import pytest

from clip4vla.training.launch import launch, ranks_here
from clip4vla.training.spec import TrainSpec
from tests.training.specs import make_spec

pytestmark = pytest.mark.slow

SLURM = {"SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "gpu[1-2]"}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for srun, which records its arguments and runs `srun.sh`."""
    srun = tmp_path / "bin" / "srun"
    srun.parent.mkdir()
    srun.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/calls\n. {tmp_path}/srun.sh\n')
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}:/usr/bin:/bin")
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("socket.gethostbyname", {"gpu1": "203.0.113.1"}.__getitem__)
    (tmp_path / "srun.sh").write_text("exit 0")
    return tmp_path


def test_two_trainings_into_the_same_checkpoints_are_refused(tmp_path: Path) -> None:
    spec = make_spec(tmp_path, "busy")
    spec.checkpoints.mkdir(parents=True)
    with (spec.checkpoints / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match=r"another process is training into .*busy: wait for it, or end it"):
            launch(spec)
    assert not (spec.checkpoints / "spec.json").exists()


def test_in_a_slurm_allocation_srun_starts_the_ranks_of_the_spec(slurm: Path) -> None:
    spec = make_spec(slurm, "slurm", ranks=4)
    launch(spec)
    calls = (slurm / "calls").read_text()
    assert "--nodes=2" in calls
    assert "--ranks=4 --nodes=2 --address=203.0.113.1" in calls
    assert TrainSpec.read(next(Path(word) for word in calls.split() if word.endswith("spec.json"))) == spec


def test_a_launcher_of_several_nodes_that_fails_is_named(slurm: Path) -> None:
    (slurm / "srun.sh").write_text("exit 9")
    with pytest.raises(RuntimeError, match="the training failed: srun ended with status 9"):
        launch(make_spec(slurm, "slurm"))


def test_a_signal_is_passed_on_and_the_handler_restored(slurm: Path) -> None:
    (slurm / "srun.sh").write_text("trap 'exit 7' TERM; kill -TERM $PPID; while :; do sleep 0.05; done")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError, match="srun ended with status 7"):
        launch(make_spec(slurm, "slurm"))
    assert signal.getsignal(signal.SIGTERM) is before


def test_ranks_are_as_configured_or_one_for_each_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert ranks_here(make_spec(tmp_path, "j", ranks=3).trainer) == 3
    assert ranks_here(make_spec(tmp_path, "j", ranks=0).trainer) == 8
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert ranks_here(make_spec(tmp_path, "j", ranks=0).trainer) == 1
    assert ranks_here(make_spec(tmp_path, "j", ranks=0, cpu_ranks=2).trainer) == 2
