"""`make serve-flows` on a miniature project: a nightly run, a cancelled one, and a worker that is killed."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from clip4vla.utils.supervise import processes_in, wait_until_none_in
from flows.serve import POOL, serve
from tests.project import REPOSITORY, environment, make_project, read_config, run, write_config
from tests.servers import free_port

PATIENCE_S = 240.0
EPOCHS = 40
"""Of a training that is long enough to be stopped: 3 steps each."""


class Served:
    """A project whose flows are served."""

    def __init__(self, project: Path) -> None:
        self.project, self.port = project, free_port()
        outside = environment()
        self.environment = outside | {
            "COLUMNS": "200",  # tables are cut to fit
            "PREFECT_HOME": str(project / ".prefect"),
            "PREFECT_API_URL": f"http://127.0.0.1:{self.port}/api",
        }
        self.log = project / ".prefect.log"
        self.process = subprocess.Popen(
            [sys.executable, "-m", "flows.serve", "--port", str(self.port)],
            cwd=project,
            env=outside,
            stdout=self.log.open("w"),
            stderr=subprocess.STDOUT,
        )
        self.wait_for(lambda: "prefect deployment run" in self.log.read_text() or self.process.poll() is not None)
        assert self.process.poll() is None, self.log.read_text()

    def wait_for(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, (
                self.log.read_text() + (self.project / ".prefect/worker.log").read_text()
            )
            time.sleep(0.2)

    def prefect(self, *arguments: str) -> str:
        command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
        done = subprocess.run(
            command, cwd=self.project, env=self.environment, capture_output=True, text=True, check=False
        )
        return done.stdout + done.stderr

    def start(self, deployment: str, *arguments: str) -> str:
        """Id of the flow run."""
        found = re.search(r"UUID: ([0-9a-f-]{36})", self.prefect("deployment", "run", deployment, *arguments))
        assert found is not None
        return found[1]

    def state(self, flow_run: str) -> str:
        found = re.search(r"type=StateType\.(\w+)|\"type\": \"(\w+)\"", self.prefect("flow-run", "inspect", flow_run))
        assert found is not None
        return found[1] or found[2]

    def end(self, number: int = signal.SIGINT) -> None:
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_project(tmp_path_factory.mktemp("served"))
    assert run(directory, "-m", "dvc", "repro").returncode == 0
    return directory


@pytest.fixture(scope="module")
def served(project: Path) -> Iterator[Served]:
    served = Served(project)
    yield served
    if served.process.poll() is None:
        served.end()
    assert processes_in(project) == {}


def lengthen(project: Path, epochs: int = EPOCHS) -> None:
    config = read_config(project)
    config["pretraining"]["epochs"] = epochs
    write_config(project, config)


def steps_done(project: Path) -> int:
    path = project / "checkpoints/pretraining/progress.json"
    return int(json.loads(path.read_text())["step"]) if path.is_file() else 0


def test_a_port_that_is_taken_is_said_so(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SystemExit, match=f"port {port} is taken.*PORT={port + 1}"):
            serve(tmp_path, port)
    assert list(tmp_path.iterdir()) == []


def test_every_deployment_waits_for_the_pool_that_is_served() -> None:
    deployments = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    assert {deployment["work_pool"]["name"] for deployment in deployments} == {POOL}
    nightly = next(deployment for deployment in deployments if deployment["name"] == "nightly")
    assert nightly["entrypoint"] == "flows/pipeline.py:pretrain"
    assert nightly["parameters"] == {"downstream": True, "force": False, "retries": 0}


@pytest.mark.slow
def test_a_nightly_run_ends_with_a_judged_candidate_and_a_true_lock(served: Served) -> None:
    lengthen(served.project, epochs=2)
    said = served.prefect("deployment", "run", "pretrain/nightly", "--watch", "--watch-timeout", "300")
    assert "Completed" in said, said + (served.project / ".prefect/worker.log").read_text()
    assert "up to date" in run(served.project, "-m", "dvc", "status").stdout
    assert json.loads((served.project / "metrics/promotion-retrieval.json").read_text())["version"] == "2"
    kept = served.prefect("artifact", "ls", "--limit", "50")
    for key in ("summary", "pretrain", "finetune-retrieval", "ablate", "evaluate-retrieval"):
        assert f" {key} " in kept


@pytest.mark.slow
def test_two_at_once_exclude_each_other_and_a_cancelled_run_leaves_a_checkpoint_and_no_process(served: Served) -> None:
    lengthen(served.project)
    flow_run = served.start("pretrain/nightly")
    served.wait_for(lambda: steps_done(served.project) >= 2)
    other = run(served.project, "-m", "dvc", "repro", "pretrain")
    assert other.returncode != 0
    assert "is being blocked by" in other.stderr
    served.prefect("flow-run", "cancel", flow_run)
    served.wait_for(lambda: served.state(flow_run) == "CANCELLED")
    served.wait_for(lambda: not training(served.project))
    assert list((served.project / "checkpoints/pretraining").glob("*/step*"))


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_its_run_along(served: Served) -> None:
    served.start("pretrain/nightly")
    before = steps_done(served.project)
    served.wait_for(lambda: steps_done(served.project) > before + 2)
    found = processes_in(served.project).items()
    [worker] = [pid for pid, words in found if words[1:5] == ["-m", "prefect", "worker", "start"]]
    os.kill(worker, signal.SIGKILL)
    served.wait_for(lambda: served.process.poll() is not None)
    wait_until_none_in(served.project, PATIENCE_S)
    assert list((served.project / "checkpoints/pretraining").glob("*/step*"))


@pytest.mark.slow
def test_ctrl_c_ends_everything_with_a_checkpoint_and_the_next_run_goes_on(project: Path) -> None:
    served = Served(project)
    flow_run = served.start("pretrain/nightly")
    before = steps_done(project)
    served.wait_for(lambda: steps_done(project) > before)
    served.end()
    assert "everything has ended" in served.log.read_text()
    assert processes_in(project) == {}
    done = steps_done(project)
    served = Served(project)
    assert served.state(flow_run) == "CANCELLED"
    served.start("pretrain/nightly")
    served.wait_for(lambda: steps_done(project) > done)
    first = re.findall(r"step +(\d+)/120 ", (project / ".prefect/worker.log").read_text())
    assert first.count("1") == 1, "the training went on from its checkpoint"
    served.process.kill()  # nothing outlives it
    wait_until_none_in(project, PATIENCE_S)


@pytest.mark.slow
def test_ctrl_c_cancels_a_run_that_has_hardly_begun(project: Path) -> None:
    served = Served(project)
    flow_run = served.start("pretrain/nightly")
    served.wait_for(lambda: served.state(flow_run) in ("PENDING", "RUNNING"))
    served.end()
    assert "everything has ended" in served.log.read_text()
    assert processes_in(project) == {}
    served = Served(project)
    state = served.state(flow_run)
    served.end()
    assert state == "CANCELLED"


def training(project: Path) -> list[int]:
    return [
        pid for pid, words in processes_in(project).items() if "clip4vla.training.worker" in words or "dvc" in words
    ]
