"""What Prefect sends: set up on a real server, received by a local HTTP server; mail by a local SMTP server."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, TCPServer

import pytest
from prefect.blocks.notifications import CustomWebhookNotificationBlock, SlackWebhook

from clip4vla.utils.variables import NOTIFY_URL
from flows.notifications import block_for
from tests.project import REPOSITORY

PATIENCE_S = 240.0
SLACK = "https://hooks.slack.com/services/T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"

EVENTS = """
import os
from datetime import UTC, datetime, timedelta
from prefect.client.orchestration import get_client
from prefect.states import Cancelled, Completed, Crashed, Failed, Pending, Running, Scheduled
from flows.notifications import emit_decision, set_up

short = timedelta(seconds=10)
set_up(os.environ["CLIP4VLA_NOTIFY_URL"], night=short, late=short)
due = Scheduled(scheduled_time=datetime.now(UTC) - timedelta(minutes=1))
with get_client(sync_client=True) as client:
    flow = client.create_flow_from_name("pretrain")
    nightly, weekly = (client.create_deployment(flow, name) for name in ("nightly", "weekly"))

    def run(deployment, *states):
        made = client.create_flow_run_from_deployment(deployment, state=states[0])
        for state in states[1:]:
            client.set_flow_run_state(made.id, state, force=True)

    late = Scheduled(name="Late", scheduled_time=datetime.now(UTC))
    run(weekly, Pending(), Running(), Completed())
    run(weekly, Pending(), Cancelled())
    run(weekly, Pending(), Running(), Failed(message="stage clips@mine failed: no clips"))
    run(weekly, Pending(), Running(), Crashed(message="the worker is gone"))
    run(weekly, Pending(), late, Pending(), Running(), Completed())
    run(weekly, due)
    run(nightly, Pending(), Running(), Completed())
emit_decision("clip4vla", "7", True, "# clip4vla version 7: promoted\\n\\n- pass: better by 2.0")
emit_decision("clip4vla", "8", False, "# clip4vla version 8: not promoted\\n\\n- FAIL: worse")
"""


class Receiver:
    """A web page that takes messages, and what it got."""

    def __init__(self, status: int = 200) -> None:
        self.got: list[dict[str, str]] = []
        got = self.got

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}/hook?token=hush"

    def wait_for(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < deadline, self.got
            time.sleep(0.2)


@contextmanager
def receiving(status: int = 200) -> Iterator[Receiver]:
    receiver = Receiver(status)
    threading.Thread(target=receiver.server.serve_forever, daemon=True).start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def run(server: dict[str, str], address: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command, variables = [sys.executable, *arguments], server | {NOTIFY_URL: address}
    return subprocess.run(command, env=variables, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_failures_decisions_and_missed_runs_arrive_and_nothing_else(server: dict[str, str]) -> None:
    with receiving() as receiver:
        done = run(server, receiver.address, "-c", EVENTS)
        assert done.returncode == 0, done.stdout + done.stderr
        receiver.wait_for(lambda: len(receiver.got) >= 7)
        time.sleep(15)  # what must not come would have come by then
    subjects = sorted(message["subject"] for message in receiver.got)
    assert subjects == [
        "CLIP4VLA: clip4vla version 7 is the champion",
        "CLIP4VLA: clip4vla version 8 was refused",
        "CLIP4VLA: notifications",
        "CLIP4VLA: pretrain crashed",
        "CLIP4VLA: pretrain did not run",
        "CLIP4VLA: pretrain does not start",
        "CLIP4VLA: pretrain failed",
    ]
    bodies = {message["subject"].removeprefix("CLIP4VLA: "): message["body"] for message in receiver.got}
    page = server["PREFECT_API_URL"].removesuffix("/api")
    assert "stage clips@mine failed: no clips" in bodies["pretrain failed"]
    assert f"\n{page}/runs/flow-run/" in bodies["pretrain failed"]
    assert "the worker is gone" in bodies["pretrain crashed"]
    assert "is a worker running?" in bodies["pretrain does not start"]
    assert "pretrain/nightly has not started for" in bodies["pretrain did not run"]
    assert "- FAIL: worse" in bodies["clip4vla version 8 was refused"]


@pytest.mark.slow
def test_the_command_can_be_run_again_and_the_server_keeps_the_last_address(server: dict[str, str]) -> None:
    with receiving() as first, receiving() as second:
        for receiver in (first, second):
            done = run(server, receiver.address, "-m", "flows.notifications")
            assert done.returncode == 0, done.stderr
        names = [f"clip4vla {name}" for name in ("failed", "crashed", "late", "nightly", "promoted", "refused")]
        assert done.stdout.splitlines() == names
        run(server, "", "-c", "from flows.notifications import *; emit_decision('clip4vla', '9', True, 'better')")
        second.wait_for(lambda: len(second.got) == 2)
        assert len(first.got) == 1
    list_names = (
        "from prefect.client.orchestration import get_client\n"
        "with get_client(sync_client=True) as client: print(*(a.name for a in client.read_automations()), sep='\\n')"
    )
    assert sorted(run(server, "", "-c", list_names).stdout.splitlines()) == sorted(names)
    database = Path(server["PREFECT_HOME"]) / "prefect.db"
    assert b"token=hush" not in database.read_bytes() + database.with_name("prefect.db-wal").read_bytes()


def test_what_is_missing_or_wrong_is_one_line_without_the_address() -> None:
    unset = {name: value for name, value in os.environ.items() if name not in (NOTIFY_URL, "PREFECT_API_URL")}
    unset["PYTHONPATH"] = str(REPOSITORY)
    there = unset | {"PREFECT_API_URL": "http://127.0.0.1:9/api"}
    command = ("-m", "flows.notifications")
    assert f"{NOTIFY_URL} and PREFECT_API_URL not set" in run(unset, "", *command).stderr
    with receiving(404) as receiver:
        wrong = {
            "nonsense://hush": "is no address of a webhook",
            receiver.address: "could not be sent to the address in CLIP4VLA_NOTIFY_URL: status 404",
            "http://127.0.0.1:9/hush": "could not be sent to the address in CLIP4VLA_NOTIFY_URL: ",
            "mailto://127.0.0.1:9?from=a@example.org&to=b@example.org&cc=hush": "could not be sent",
        }
        for address, reason in wrong.items():
            done = run(there, address, *command)
            assert done.returncode == 1
            assert reason in done.stderr
            assert len(done.stderr.splitlines()) == 1
            assert "hush" not in done.stderr


def test_each_kind_of_address_has_its_block() -> None:
    assert isinstance(block_for("https://example.org/hook?token=hush"), CustomWebhookNotificationBlock)
    for address in (SLACK, "mailtos://ann:hush@smtp.example.org?from=a@example.org&to=b@example.org"):
        block = block_for(address)
        assert isinstance(block, SlackWebhook)
        assert "hush" not in repr(block)
    assert "hush" not in repr(block_for("https://example.org/hook?token=hush"))


def test_mail_is_sent_by_smtp() -> None:
    commands: list[str] = []
    texts: list[bytes] = []

    class Mailbox(StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            for line in self.rfile:
                commands.append(line.decode().strip().lower())
                if commands[-1] == "data":
                    self.wfile.write(b"354 go on\r\n")
                    texts.append(b"".join(iter(self.rfile.readline, b".\r\n")))
                self.wfile.write(b"250 fine\r\n")

    with TCPServer(("127.0.0.1", 0), Mailbox) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        block = block_for(f"mailto://127.0.0.1:{server.server_address[1]}?from=a@example.org&to=b@example.org")
        with block.raise_on_failure():
            block.notify("no clips", "CLIP4VLA: pretrain failed")
        server.shutdown()
    assert "rcpt to:<b@example.org>" in commands
    message = message_from_bytes(texts[0], policy=policy.default)
    body = message.get_body()
    assert message["Subject"] == "CLIP4VLA: pretrain failed"
    assert body is not None
    assert "no clips" in body.get_content()
