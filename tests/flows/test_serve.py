"""`make serve-flows` on a miniature project: a nightly run, a cancelled one, and a worker that is killed."""

import importlib
import inspect
import json
import os
import re
import shlex
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import closing
from email.message import Message
from pathlib import Path

import pytest
import yaml
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect
from websockets.typing import Origin, Subprotocol

from clip4vla.utils.supervise import processes_in, wait_until_none_in
from flows.serve import LOGIN, POOL, read_login, serve
from tests.project import REPOSITORY, environment, make_project, read_config, run, write_config
from tests.servers import free_port, listeners

PATIENCE_S = 240.0
STRANGER = "http://stranger.example"
"""Where the page comes from that is open in somebody's browser."""
EPOCHS = 40
"""Of a training that is long enough to be stopped: 3 steps each."""


class Served:
    """A project whose flows are served."""

    def __init__(self, project: Path) -> None:
        self.project, self.port = project, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        outside = environment()
        self.environment = outside | {"COLUMNS": "200"}  # tables are cut to fit
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
        self.login = (project / LOGIN).read_text().strip()

    def wait_for(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, (
                self.log.read_text() + (self.project / ".prefect/worker.log").read_text()
            )
            time.sleep(0.2)

    def prefect(self, *arguments: str, export: str | None = None) -> str:
        """What a command says in another terminal, after `export` there: by default what was printed as to be typed."""
        [printed] = re.findall(r"^ +(export .+)$", self.log.read_text(), re.MULTILINE)
        command = shlex.join([sys.executable, "-m", "prefect", "--no-prompt", *arguments])
        done = subprocess.run(
            ["sh", "-c", f"{export or printed}; {command}"],
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout + done.stderr

    def ask(self, method: str, path: str, content: str | None = None, **headers: str) -> tuple[int, Message]:
        """Status and headers of the answer to a request, such as the browser of a visitor to another page makes."""
        asked = {name.replace("_", "-"): value for name, value in headers.items()}
        body = None if content is None else content.encode()
        request = urllib.request.Request(f"{self.address}{path}", body, {"Origin": STRANGER, **asked}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.headers

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


@pytest.mark.parametrize("port", ["0", "65536", "-1"])
def test_what_is_no_port_is_refused(port: str) -> None:
    done = run(REPOSITORY, "-m", "flows.serve", "--port", port)
    assert done.returncode == 2
    assert "Invalid value for '--port'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("damage", [b"", b"\xff\xfe", b"ann:one\nbob:two\n", None])
def test_a_damaged_login_is_one_sentence(tmp_path: Path, damage: bytes | None) -> None:
    path = tmp_path / "login"
    path.mkdir() if damage is None else path.write_bytes(damage)
    with pytest.raises(SystemExit, match="login must hold USER:PASSWORD in one line, without spaces"):
        read_login(path)


def test_a_login_is_made_once_and_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "login"
    login = read_login(path)
    assert re.fullmatch(r"clip4vla:[\w-]{32}", login)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert read_login(path) == login
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("ann:of her own\n")
    with pytest.raises(SystemExit, match="login must hold USER:PASSWORD in one line, without spaces"):
        read_login(path)
    path.write_text("ann:of-her-own\n")
    assert read_login(path) == "ann:of-her-own"


def test_every_deployment_waits_for_the_pool_that_is_served() -> None:
    deployments = yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]
    assert {deployment["work_pool"]["name"] for deployment in deployments} == {POOL}
    nightly = next(deployment for deployment in deployments if deployment["name"] == "nightly")
    assert nightly["entrypoint"] == "flows/pipeline.py:pretrain"
    assert nightly["parameters"] == {"downstream": True, "force": False, "retries": 0}


def test_every_deployment_has_parameters_of_its_flow() -> None:
    for deployment in yaml.safe_load((REPOSITORY / "prefect.yaml").read_text())["deployments"]:
        module, name = deployment["entrypoint"].removesuffix(".py").replace("/", ".").replace(".py:", ":").split(":")
        flow = getattr(importlib.import_module(module), name)
        assert set(deployment.get("parameters", {})) <= set(inspect.signature(flow.fn).parameters), deployment["name"]


@pytest.mark.slow
def test_runs_that_ended_90_days_ago_are_removed_and_later_ones_stay(server: dict[str, str]) -> None:
    script = (
        "from prefect.client.orchestration import get_client; from prefect.states import Completed\n"
        "with get_client(sync_client=True) as client:\n"
        "    deployment = client.create_deployment(client.create_flow_from_name('prepare'), 'weekly')\n"
        "    for _ in range(3): print(client.create_flow_run_from_deployment(deployment, state=Completed()).id)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], env=server, capture_output=True, text=True, check=True)
    runs = done.stdout.split()

    def ask(statement: str, *values: str) -> list[str]:
        path = Path(server["PREFECT_HOME"]) / "prefect.db"
        with closing(sqlite3.connect(path, timeout=60)) as database, database:
            return [str(row[0]) for row in database.execute(statement, values)]

    for run_id, days in zip(runs, (100, 91, 80), strict=True):
        ask("UPDATE flow_run SET end_time = datetime('now', ?) WHERE id = ?", f"-{days} days", run_id)
    deadline = time.monotonic() + PATIENCE_S
    while (kept := {*ask("SELECT id FROM flow_run")} & {*runs}) != {runs[2]}:
        assert time.monotonic() < deadline, kept
        time.sleep(0.5)


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
def test_a_page_of_another_site_can_have_nothing_done(served: Served) -> None:
    flow = json.dumps({"name": "strange"})
    status, headers = served.ask("OPTIONS", "/api/flows/", Access_Control_Request_Method="POST")
    assert (status, headers["Access-Control-Allow-Origin"]) == (400, None)
    remembered = f"Basic {b64encode(served.login.encode()).decode()}"  # even if the browser sent the login along
    for others in ({}, {"Authorization": remembered}):
        for kind in ("text/plain", "application/json"):
            status, headers = served.ask("POST", "/api/flows/", flow, Content_Type=kind, **others)
            assert (status, headers["Access-Control-Allow-Origin"]) == (403, None), "there is no CSRF token"
    for path in ("/api/csrf-token?client=strange", "/api/admin/version"):
        status, headers = served.ask("GET", path)
        assert (status, headers["Access-Control-Allow-Origin"]) == (401, None)
    assert "strange" not in served.prefect("flow", "ls")


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "d3Jvbmc="])
def test_a_socket_of_another_site_is_closed(served: Served, token: str | None) -> None:
    address = f"ws://127.0.0.1:{served.port}/api/events/in"
    with connect(address, origin=Origin(STRANGER), subprotocols=[Subprotocol("prefect")]) as stranger:
        stranger.send(json.dumps({"type": "auth", "token": token}))
        with pytest.raises(ConnectionClosedError, match="1008"):
            stranger.recv(timeout=30)


@pytest.mark.slow
def test_commands_need_the_login_and_no_log_has_it(served: Served) -> None:
    here = f"export PREFECT_API_URL={served.address}/api"
    assert "pretrain/nightly" in served.prefect("deployment", "ls")
    assert "401 Unauthorized" in served.prefect("deployment", "ls", export=here)
    wrong = served.prefect("deployment", "ls", export=f"{here} PREFECT_API_AUTH_STRING={served.login}x")
    assert "401 Unauthorized" in wrong
    password = served.login.partition(":")[2].encode()
    files = [served.log, *(path for path in (served.project / ".prefect").rglob("*") if path.is_file())]
    assert [path for path in files if password in path.read_bytes()] == [served.project / LOGIN]


@pytest.mark.slow
def test_server_worker_and_training_listen_on_loopback_only(served: Served) -> None:
    lengthen(served.project)
    flow_run = served.start("pretrain/nightly")
    served.wait_for(lambda: steps_done(served.project) >= 1)
    found = listeners(served.process.pid)
    assert ("127.0.0.1", served.port) in found
    assert {address for address, _ in found} == {"127.0.0.1"}
    served.prefect("flow-run", "cancel", flow_run)
    served.wait_for(lambda: served.state(flow_run) == "CANCELLED")


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
