"""`python -m flows.serve`: Prefect's server, the pool `local`, the deployments and a worker, on this machine.

Everything that Prefect keeps is in `.prefect/` of the project. Ctrl-C cancels what runs, so that a training leaves a
checkpoint, then ends worker and server; where this process is killed, they end by themselves.

Whoever can call the server's API can have the worker run any command. So it listens on loopback only and asks for the
login in `.prefect/login`, which other users of the machine can't read; a page of another site that is open in a browser
gets neither answers (CORS) nor anything done (login, CSRF token).
"""

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from clip4vla.utils.http import answers
from clip4vla.utils.supervise import PATIENCE_S, supervised
from clip4vla.utils.variables import warn_of_unread

if TYPE_CHECKING:
    from prefect.client.schemas.filters import FlowRunFilter

POOL = "local"
PORT = 4200
HOME = ".prefect"
LOGIN = f"{HOME}/login"
"""The login of the server: one line, `USER:PASSWORD`."""
START_S = 180.0
"""How long a server may take to answer first; on a busy laptop it makes its database for a minute."""
CANCEL_S = 120.0
"""How long cancelled runs may take to end: the worker notices within seconds, a training writes a checkpoint."""


class Stopped(BaseException):
    """This process received a signal to end."""


def settings(root: Path, port: int, login: str) -> dict[str, str]:
    """The environment of every process: the project's own server, its state, and who may use it."""
    address = f"http://127.0.0.1:{port}"
    here = {
        "PREFECT_HOME": str(root / HOME),
        "PREFECT_API_URL": f"{address}/api",
        "PREFECT_API_AUTH_STRING": login,
        "PREFECT_CLIENT_CSRF_SUPPORT_ENABLED": "true",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_SERVER_API_AUTH_STRING": login,
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": address,
        "PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_SERVICES_DB_VACUUM_ENABLED": "events,flow_runs",  # runs that ended 90 days ago are removed
        "PWD": str(root),  # the working directory of flows in prefect.yaml
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    return {**os.environ, **here}


def serve(root: Path, port: int) -> None:
    """Start everything, and stay until it is to end.

    Raises:
        SystemExit: the port is taken, the login can't be used, or something can't be started; the message names it.
    """
    _check_free(port)
    (root / HOME).mkdir(mode=0o700, exist_ok=True)
    environment = settings(root, port, read_login(root / LOGIN))
    os.environ.update(environment)  # before Prefect is imported, which reads it then
    with _stoppable(), _running(root, environment, "server", "server", "start") as server:
        _wait_until_healthy(f"{environment['PREFECT_API_URL']}/health", server)
        _prefect(root, environment, "work-pool", "create", POOL, "--type", "process", "--overwrite")
        _prefect(root, environment, "work-pool", "set-concurrency-limit", POOL, "1")
        _prefect(root, environment, "deploy", "--all")
        _settle_old_runs()
        with _running(root, environment, "worker", "worker", "start", "--pool", POOL) as worker:
            print(_how_to_use(port), flush=True)
            try:
                _wait_for_either(server, worker)
            finally:
                if server.poll() is None and worker.poll() is None:
                    _cancel_runs()


def read_login(path: Path) -> str:
    """The login in `path`, which only its owner can read; one with a random password is written where there is none.

    Raises:
        SystemExit: the file holds no login.
    """
    if not path.exists():
        with open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(f"clip4vla:{secrets.token_urlsafe(24)}\n")
    path.chmod(0o600)
    login = path.read_text(encoding="utf-8", errors="replace").strip() if path.is_file() else ""
    if not re.fullmatch("[!-~]+:[!-~]+", login):
        raise SystemExit(f"{path} must hold USER:PASSWORD in one line, without spaces; without the file, one is made")
    return login


def _how_to_use(port: int) -> str:
    return (
        f"\nPrefect is at http://127.0.0.1:{port}, and asks for the login in {LOGIN}. In another terminal:\n"
        f'    export PREFECT_API_URL=http://127.0.0.1:{port}/api PREFECT_API_AUTH_STRING="$(cat {LOGIN})"\n'
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
    while not answers(url):
        if server.poll() is not None:
            raise SystemExit(f"the server ended with status {server.returncode}; {HOME}/server.log says why")
        if time.monotonic() > deadline:
            raise SystemExit(f"the server didn't answer within {START_S:.0f} s; {HOME}/server.log may say why")
        time.sleep(0.5)


def _wait_for_either(*processes: "subprocess.Popen[bytes]") -> None:
    while all(process.poll() is None for process in processes):
        time.sleep(0.5)
    raise SystemExit(f"server or worker ended by itself; the logs in {HOME}/ say why")


def _settle_old_runs() -> None:
    """Mark as crashed what an earlier server left running when it was killed: the pool would wait for it forever."""
    from prefect.client.orchestration import get_client
    from prefect.states import Crashed

    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=_going_on("PENDING", "RUNNING", "CANCELLING")):
            client.set_flow_run_state(run.id, Crashed(message="the server ended before the run did"), force=True)


def _cancel_runs() -> None:
    """Cancel the flow runs that go on or are about to, and wait until they have ended: trainings leave checkpoints."""
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    with get_client(sync_client=True) as client:
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


def main(port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prefect's server.")] = PORT) -> None:
    """Serve the flows of the project in the working directory."""
    warn_of_unread()
    serve(Path.cwd(), port)


if __name__ == "__main__":
    typer.run(main)
