"""Servers that tests start and end: a command, and the address at which it answers; what a process listens on."""

import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from clip4vla.utils.http import answers

PATIENCE_S = 240.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(
    command: Sequence[str], url: str, environment: Mapping[str, str], log: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run the supervised `command`, wait until `url` answers, and end it and its children with the block."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, env=dict(environment), stdout=file, stderr=file, cwd=log.parent)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not answers(url):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def listeners(pid: int, descendants: bool = True) -> set[tuple[str, int]]:
    """Address and port of everything that a process, and its descendants, listen on."""
    family = [psutil.Process(pid), *(psutil.Process(pid).children(recursive=True) if descendants else [])]
    found = [connection for process in family for connection in process.net_connections("tcp")]
    return {(c.laddr.ip, c.laddr.port) for c in found if c.status == psutil.CONN_LISTEN}
