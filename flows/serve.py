"""`python -m flows.serve`: Prefect's server, the pool `local`, the deployments and a worker, on this machine.

Everything that Prefect keeps is in `.prefect/` of the project. Ctrl-C cancels what runs, so that a training leaves a
checkpoint, then ends worker and server; where this process is killed, they end by themselves.
"""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from clip4vla.utils.supervise import PATIENCE_S, supervised

if TYPE_CHECKING:
    from prefect.client.schemas.filters import FlowRunFilter

POOL = "local"
PORT = 4200
HOME = ".prefect"
START_S = 180.0
"""How long a server may take to answer first; on a busy laptop it makes its database for a minute."""
CANCEL_S = 120.0
"""How long cancelled runs may take to end: the worker notices within seconds, a training writes a checkpoint."""


class Stopped(BaseException):
    """This process received a signal to end."""


def settings(root: Path, port: int) -> dict[str, str]:
    """The environment of every process: the project's own server and state."""
    here = {
        "PREFECT_HOME": str(root / HOME),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PWD": str(root),  # the working directory of flows in prefect.yaml
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    return {**os.environ, **here}


def serve(root: Path, port: int) -> None:
    """Start everything, and stay until it is to end.

    Raises:
        SystemExit: the port is taken, or something can't be started; the message names it.
    """
    _check_free(port)
    environment = settings(root, port)
    os.environ.update(environment)  # before Prefect is imported, which reads it then
    (root / HOME).mkdir(exist_ok=True)
    with _stoppable(), _running(root, environment, "server", "server", "start") as server:
        _wait_until_healthy(f"{environment['PREFECT_API_URL']}/health", server)
        _prefect(root, environment, "work-pool", "create", POOL, "--type", "process", "--overwrite")
        _prefect(root, environment, "work-pool", "set-concurrency-limit", POOL, "1")
        _prefect(root, environment, "deploy", "--all")
        _settle_old_runs(environment["PREFECT_API_URL"])
        with _running(root, environment, "worker", "worker", "start", "--pool", POOL) as worker:
            print(_how_to_use(port), flush=True)
            try:
                _wait_for_either(server, worker)
            finally:
                if server.poll() is None and worker.poll() is None:
                    _cancel_runs(environment["PREFECT_API_URL"])


def _how_to_use(port: int) -> str:
    return (
        f"\nPrefect is at http://127.0.0.1:{port}; in another terminal:\n"
        f"    export PREFECT_API_URL=http://127.0.0.1:{port}/api\n"
        "    prefect deployment run pretrain/nightly --watch\n"
        "Ctrl-C here cancels what runs, with a checkpoint, and ends everything.\n"
    )


def _check_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise SystemExit(
                f"port {port} is taken, perhaps by another server: end that, or `make serve-flows PORT={port + 1}`"
            ) from None


@contextmanager
def _stoppable() -> Iterator[None]:
    """Ctrl-C and SIGTERM raise `Stopped`, once: what is done then isn't interrupted."""
    received: list[int] = []

    def stop(number: int, _: FrameType | None) -> None:
        if not received:
            received.append(number)
            raise Stopped
        print("ending already; a training may need a moment for its checkpoint", file=sys.stderr, flush=True)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        yield
    except Stopped:
        print("everything has ended", flush=True)


@contextmanager
def _running(
    root: Path, environment: dict[str, str], name: str, *arguments: str
) -> Iterator["subprocess.Popen[bytes]"]:
    """A Prefect command that goes on in the background, and is ended with the block. Its output is in `.prefect/`."""
    log = root / HOME / f"{name}.log"
    with log.open("ab") as file:
        command = supervised([sys.executable, "-m", "prefect", *arguments])
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=file, stderr=subprocess.STDOUT, process_group=0
        )
        print(f"{name}: started; its log is {log.relative_to(root)}", flush=True)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(2 * PATIENCE_S)


def _prefect(root: Path, environment: dict[str, str], *arguments: str) -> None:
    """Run a Prefect command to its end, silent where it goes well."""
    command = [sys.executable, "-m", "prefect", "--no-prompt", *arguments]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"`prefect {' '.join(arguments)}` failed:\n{done.stdout}{done.stderr}")


def _wait_until_healthy(url: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while not _answers(url):
        if server.poll() is not None:
            raise SystemExit(f"the server ended with status {server.returncode}; {HOME}/server.log says why")
        if time.monotonic() > deadline:
            raise SystemExit(f"the server didn't answer within {START_S:.0f} s; {HOME}/server.log may say why")
        time.sleep(0.5)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _wait_for_either(*processes: "subprocess.Popen[bytes]") -> None:
    while all(process.poll() is None for process in processes):
        time.sleep(0.5)
    raise SystemExit(f"server or worker ended by itself; the logs in {HOME}/ say why")


def _settle_old_runs(url: str) -> None:
    """Mark as crashed what an earlier server left running when it was killed: the pool would wait for it forever."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.states import Crashed

    with SyncPrefectClient(url) as client:
        for run in client.read_flow_runs(flow_run_filter=_going_on("PENDING", "RUNNING", "CANCELLING")):
            client.set_flow_run_state(run.id, Crashed(message="the server ended before the run did"), force=True)


def _cancel_runs(url: str) -> None:
    """Cancel the flow runs that go on or are about to, and wait until they have ended: trainings leave checkpoints."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.states import Cancelling

    with SyncPrefectClient(url) as client:
        for run in client.read_flow_runs(flow_run_filter=_going_on("PENDING", "RUNNING")):
            print(f"cancelling {run.name}", flush=True)
            client.set_flow_run_state(run.id, Cancelling())
        ending = _going_on("PENDING", "RUNNING", "CANCELLING")
        if not _wait_for(lambda: not client.read_flow_runs(flow_run_filter=ending), CANCEL_S):
            print(f"runs did not end within {CANCEL_S:.0f} s; their trainings continue from an earlier checkpoint")


def _going_on(*states: str) -> "FlowRunFilter":
    from prefect.client.schemas.filters import FlowRunFilter

    return FlowRunFilter.model_validate({"state": {"type": {"any_": list(states)}}})


def _wait_for(done: Callable[[], bool], seconds: float) -> bool:
    """Whether `done` became true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() >= deadline:
            return False
        time.sleep(1.0)
    return True


def main(port: Annotated[int, typer.Option(help="Port of Prefect's server.")] = PORT) -> None:
    """Serve the flows of the project in the working directory."""
    serve(Path.cwd(), port)


if __name__ == "__main__":
    typer.run(main)
