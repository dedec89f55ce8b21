"""Starting ranks: one training at a time, this node or several, and signals left as they were."""

import fcntl
import json
import signal
from pathlib import Path

import pytest

from benchmarks.clips import write_clips
from clip4vla.training.launch import launch, launch_with_retries, ranks_here
from clip4vla.training.spec import TrainSpec
from tests.training.specs import make_spec

pytestmark = pytest.mark.slow

SLURM = {"SLURM_JOB_ID": "5", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "gpu[1-2]"}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand-ins: srun records its arguments and runs `srun.sh`, squeue tells what is in `state`, scancel ends srun."""
    bodies = {
        "srun": f'echo "$@" > {tmp_path}/calls\necho $$ > {tmp_path}/pid\n. {tmp_path}/srun.sh',
        "squeue": f"cat {tmp_path}/state",
        "scancel": f'test "$*" = "--quiet --signal=TERM 5" && kill -USR1 $(cat {tmp_path}/pid)',
    }
    for name, body in bodies.items():
        program = tmp_path / "bin" / name
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
    (tmp_path / "state").write_text("RUNNING\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
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
    with pytest.raises(RuntimeError, match="srun ended with status 9; its output says which rank failed"):
        launch(make_spec(slurm, "slurm"))


def test_a_signal_asks_the_ranks_of_all_nodes_to_stop_and_the_handler_is_restored(slurm: Path) -> None:
    (slurm / "srun.sh").write_text("trap 'exit 143' USR1; kill -TERM $PPID; while :; do sleep 0.05; done")
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stopped:
        launch(make_spec(slurm, "slurm"))
    assert stopped.value.code == 128 + signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("refused", "kind"), [(True, ValueError), (False, RuntimeError)])
def test_the_reason_that_the_first_node_left_is_raised(slurm: Path, refused: bool, kind: type[Exception]) -> None:
    spec = make_spec(slurm, "slurm")
    spec.checkpoints.mkdir(parents=True)
    (spec.checkpoints / "failure.json").write_text("of an earlier attempt")
    failure = json.dumps({"refused": refused, "message": "node 1: rank 3 ended first"})
    (slurm / "srun.sh").write_text(f"echo '{failure}' > {spec.checkpoints}/failure.json; exit 143")
    with pytest.raises(kind, match=r"^node 1: rank 3 ended first$"):
        launch(spec)


def test_a_job_that_slurm_is_ending_stops_the_training_whatever_its_ranks_died_of(
    slurm: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (slurm / "state").write_text("COMPLETING\n")
    (slurm / "srun.sh").write_text("exit 137")
    write_clips(slurm / "train.lance")
    with pytest.raises(SystemExit):
        launch_with_retries(make_spec(slurm, "slurm"))
    assert capsys.readouterr().out == (
        "the training has stopped, because Slurm is ending job 5 (COMPLETING); started again, it goes on from the "
        "beginning, there is no checkpoint yet\n"
    )


def test_ranks_are_as_configured_or_one_for_each_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    assert ranks_here(make_spec(tmp_path, "j", ranks=3).trainer) == 3
    assert ranks_here(make_spec(tmp_path, "j", ranks=0).trainer) == 8
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert ranks_here(make_spec(tmp_path, "j", ranks=0).trainer) == 1
    assert ranks_here(make_spec(tmp_path, "j", ranks=0, cpu_ranks=2).trainer) == 2
