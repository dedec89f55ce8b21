"""Trainings on two nodes of a real Slurm: the same weights as on one, whatever ends them in between.

`make test-cluster` installs what it needs.
"""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from clip4vla.training.spec import TrainSpec, read_run
from clip4vla.utils.supervise import is_alive
from tests.cluster.machines import wait_for
from tests.cluster.slurm import NODES, Slurm
from tests.cluster.trainings import Job, assert_close, assert_same, command, make_spec, train_here

pytestmark = pytest.mark.cluster

STEPS = 24
TWO_NODES = "--nodes=2"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> TrainSpec:
    """A training by two ranks of one node that nothing disturbed."""
    return train_here(make_spec(tmp_path_factory.mktemp("undisturbed"), STEPS, ranks=2))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> TrainSpec:
    """The same training by one process."""
    return train_here(make_spec(tmp_path_factory.mktemp("alone"), STEPS, ranks=1))


@pytest.fixture(autouse=True)
def _two_idle_nodes(slurm: Slurm) -> Iterator[None]:
    """Both nodes are up before a test, and no process of a job is left after it."""
    for name in NODES:
        if name not in slurm.machines.running:
            slurm.start_node(name)
    slurm.wait_until_idle()
    yield
    slurm.call("scancel", "--user=root")
    wait_for(lambda: not slurm.call("squeue", "--noheader").strip(), "no job")
    wait_for(lambda: not processes_of_jobs(slurm), "no process of a job", lambda: str(processes_of_jobs(slurm)))


def processes_of_jobs(slurm: Slurm) -> list[psutil.Process]:
    """What runs on the nodes beside their own daemon."""
    found = [process for name in NODES if name in slurm.machines.running
             for process in slurm.machines.running[name].processes()]  # fmt: skip
    return [process for process in found if is_alive(process) and process.name().startswith(("python", "srun", "bash"))]


def rank_on(slurm: Slurm, node: str) -> psutil.Process:
    """The rank that runs on a node."""
    [rank] = [process for process in slurm.machines.running[node].processes()
              if "clip4vla.training.worker" in process.cmdline()]  # fmt: skip
    return rank


def test_two_nodes_give_the_weights_of_two_ranks_here_and_but_for_rounding_those_of_one(
    slurm: Slurm, undisturbed: TrainSpec, alone: TrainSpec, tmp_path: Path
) -> None:
    job = Job(slurm, make_spec(tmp_path, STEPS), TWO_NODES)
    assert job.end()["JobState"] == "COMPLETED", job.output()
    assert read_run(job.spec.out)["world_size"] == 2
    assert_same(job.spec, undisturbed)
    assert_close(job.spec, alone)


def test_scancel_leaves_a_checkpoint_and_says_so(slurm: Slurm, undisturbed: TrainSpec, tmp_path: Path) -> None:
    job = Job(slurm, make_spec(tmp_path, STEPS), TWO_NODES)
    job.until(5)
    slurm.call("scancel", job.id)
    assert job.end()["JobState"] == "CANCELLED"
    kept = job.checkpoint()
    assert kept >= 5, job.output()
    ending = f"Slurm is ending job {job.id} (COMPLETING); started again, it goes on from the checkpoint of step {kept}"
    template = f"job {job.id}: Slurm is ending it (COMPLETING); the command ended with status 143"
    wait_for(lambda: template in job.output(), "the template's message", job.output)
    assert ending in job.output()
    assert "going on from" not in job.output()
    assert "Traceback" not in job.output()
    again = Job(slurm, job.spec, TWO_NODES)
    assert again.end()["JobState"] == "COMPLETED", again.output()
    assert again.steps()[-(STEPS - kept)] == kept + 1
    assert_same(again.spec, undisturbed)


def test_a_killed_rank_queues_the_job_again_unless_a_checkpoint_lets_it_go_on_at_once(
    slurm: Slurm, undisturbed: TrainSpec, tmp_path: Path
) -> None:
    job = Job(slurm, make_spec(tmp_path, STEPS, checkpoint_every=8), TWO_NODES)
    job.until(3)
    rank_on(slurm, "n2").kill()
    job.restarted()
    assert "node 1: the training failed: rank 1 ended first, by SIGKILL" in job.output()
    assert "the job is queued again" in job.output()
    job.until(10)
    rank_on(slurm, "n1").kill()
    assert job.end()["JobState"] == "COMPLETED", job.output()
    assert slurm.job(job.id)["Restarts"] == "1"
    assert "ended first, by SIGKILL" in job.output().rpartition("is queued again")[2]
    assert "going on from the checkpoint of step 8" in job.output()
    assert_same(job.spec, undisturbed)


def test_a_node_that_fails_queues_the_job_again(slurm: Slurm, undisturbed: TrainSpec, tmp_path: Path) -> None:
    job = Job(slurm, make_spec(tmp_path, STEPS, checkpoint_every=4), TWO_NODES)
    job.until(6)
    slurm.machines.kill("n1")  # on which the template runs
    job.restarted()
    slurm.start_node("n1")
    assert job.end()["JobState"] == "COMPLETED", job.output()
    assert read_run(job.spec.out)["world_size"] == 2
    assert_same(job.spec, undisturbed)


def test_a_job_that_may_have_one_node_goes_on_without_the_other(slurm: Slurm, alone: TrainSpec, tmp_path: Path) -> None:
    job = Job(slurm, make_spec(tmp_path, STEPS, checkpoint_every=4), "--nodes=1-2")
    job.until(6)
    assert slurm.job(job.id)["NumNodes"] == "2"
    slurm.machines.kill("n2")
    job.restarted()
    assert job.end()["JobState"] == "COMPLETED", job.output()
    assert read_run(job.spec.out)["world_size"] == 1
    assert 5 in job.steps()
    assert len(job.steps()) < 2 * STEPS
    assert_close(job.spec, alone)


@pytest.mark.parametrize("how", ["preemption", "time limit"])
def test_a_job_that_must_make_way_leaves_a_checkpoint_and_is_queued_again(
    slurm: Slurm, undisturbed: TrainSpec, tmp_path: Path, how: str
) -> None:
    job = Job(slurm, make_spec(tmp_path, STEPS), TWO_NODES)
    job.until(5)
    if how == "preemption":
        slurm.submit(tmp_path, "--partition=urgent", TWO_NODES, "--output=/dev/null", "--wrap=sleep 1")
    else:
        slurm.call("scancel", "--batch", "--signal=TERM", job.id)  # as --signal=B:TERM does
    job.restarted()
    kept = job.checkpoint()
    assert kept >= 5, job.output()
    assert f"goes on from the checkpoint of step {kept}" in job.output()
    assert job.end()["JobState"] == "COMPLETED", job.output()
    assert job.steps()[-(STEPS - kept)] == kept + 1
    assert "Traceback" not in job.output()
    assert_same(job.spec, undisturbed)


def test_a_training_that_its_nodes_refuse_says_why(slurm: Slurm, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, STEPS)
    training = spec.training.model_copy(update={"batch_size": 7})
    log = tmp_path / "log"
    words = " ".join(command(spec.model_copy(update={"training": training})))
    job = slurm.submit(tmp_path, f"--output={log}", TWO_NODES, f"--wrap={words}")
    wait_for(lambda: slurm.job(job)["JobState"] == "FAILED", "the end of the job")
    assert "clip4vla: node " in log.read_text()
    assert "pretraining.batch_size is 7, which 2 ranks can't share equally" in log.read_text().splitlines()[-1]
