"""A stage of a flow on a real Slurm: the flow submits and follows the job, and its end cancels the job."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from clip4vla.training.checkpoints import newest_checkpoint
from clip4vla.training.spec import PROGRESS_FILE, TrainSpec, read_run
from tests.cluster.machines import HEAD, wait_for
from tests.cluster.slurm import Slurm
from tests.cluster.trainings import command, make_spec

pytestmark = pytest.mark.cluster

FLOW = """from flows.stages import reproduce  # first: it sets how long Prefect may take to start
from prefect import flow

@flow(log_prints=True)
def train():
    reproduce("pretrain", force=False)

train()
"""
STEPS = 16


@pytest.fixture
def spec(tmp_path: Path) -> TrainSpec:
    """Of a project with one stage, which trains."""
    spec = make_spec(tmp_path, STEPS)
    stage = {"cmd": " ".join(command(spec)), "outs": ["runs"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"pretrain": stage}}))
    (tmp_path / "flow.py").write_text(FLOW)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-m", "dvc", "init", "-q"], cwd=tmp_path, check=True)
    return spec


def start(slurm: Slurm, spec: TrainSpec) -> "subprocess.Popen[bytes]":
    """The flow, on the head."""
    here = {"CLIP4VLA_SBATCH": "--nodes=2", "PREFECT_HOME": str(spec.root / "prefect"), "DO_NOT_TRACK": "1"}
    with (spec.root / "flow.log").open("ab") as log:
        return subprocess.Popen(
            slurm.machines.running[HEAD].on([sys.executable, "flow.py"], spec.root),
            env={**slurm.environment(), **here}, stdout=log, stderr=log,
        )  # fmt: skip


def test_a_flow_follows_its_job_and_what_ends_the_flow_cancels_it(slurm: Slurm, spec: TrainSpec) -> None:
    log, progress = spec.root / "flow.log", spec.checkpoints / PROGRESS_FILE
    flow = start(slurm, spec)
    wait_for(lambda: progress.is_file() and json.loads(progress.read_text())["step"] >= 4, "step 4", log.read_text)
    [inside] = [process for process in slurm.machines.running[HEAD].processes()
                if process.cmdline()[1:] == ["flow.py"]]  # fmt: skip
    inside.terminate()
    flow.wait()
    wait_for(lambda: not slurm.call("squeue", "--noheader").strip(), "the end of the job", log.read_text)
    kept = newest_checkpoint(spec.checkpoints / spec.fingerprint())
    assert kept is not None
    assert kept.step >= 4
    again = start(slurm, spec)
    assert again.wait() == 0, log.read_text()
    assert read_run(spec.out)["world_size"] == 2
    printed = log.read_text()
    assert f"step {kept.step + 1:2}/{STEPS}" in printed.rpartition("submitted")[2]
    assert "COMPLETED" in printed
