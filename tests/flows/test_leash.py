"""A command on a leash: it ends by itself, when it is asked to, and when those it works for are gone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flows.leash import is_gone, leashed
from tests.project import REPOSITORY

PATIENCE_S = 30.0
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}


def start(script: str, *others: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(leashed(["sh", "-c", script], *others), env=ENVIRONMENT)


def wait_for_file(path: Path) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while not (path.is_file() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"{path} isn't there"
        time.sleep(0.05)
    return path.read_text().strip()


def waiting(directory: Path) -> str:
    """A shell with a child, both of which note their ids and wait; the shell notes that it was asked to end."""
    inner = f"echo $$ > {directory}/child; exec sleep 100"
    return (
        f"trap 'echo asked > {directory}/asked; exit 3' TERM; sh -c '{inner}' & "
        f"echo $$ > {directory}/shell; while :; do sleep 0.05; done"
    )


def assert_ended(directory: Path) -> None:
    assert wait_for_file(directory / "asked") == "asked"
    deadline = time.monotonic() + PATIENCE_S
    for name in ("child", "shell"):
        while not is_gone(int(wait_for_file(directory / name))):
            assert time.monotonic() < deadline, f"the {name} is still there"
            time.sleep(0.05)


@pytest.mark.parametrize("status", [0, 7])
def test_the_status_of_a_command_that_ends_comes_through(status: int) -> None:
    assert start(f"exit {status}").wait(PATIENCE_S) == status


def test_what_a_command_leaves_behind_is_ended(tmp_path: Path) -> None:
    process = start(f"sh -c 'echo $$ > {tmp_path}/child; exec sleep 100' & sleep 0.5")
    assert process.wait(PATIENCE_S) == 0
    assert is_gone(int(wait_for_file(tmp_path / "child")))


def test_asked_to_end_it_asks_the_whole_group(tmp_path: Path) -> None:
    process = start(waiting(tmp_path))
    wait_for_file(tmp_path / "child")
    wait_for_file(tmp_path / "shell")
    process.send_signal(signal.SIGINT)  # the terminal's, which the parent answers
    time.sleep(0.3)
    assert not (tmp_path / "asked").exists()
    process.terminate()
    assert process.wait(PATIENCE_S) == 3
    assert_ended(tmp_path)


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = f"import subprocess; subprocess.run({leashed(['sh', '-c', waiting(tmp_path)])!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT)
    wait_for_file(tmp_path / "child")
    wait_for_file(tmp_path / "shell")
    parent.kill()
    parent.wait()
    assert_ended(tmp_path)


def test_it_ends_when_another_that_holds_it_is_killed(tmp_path: Path) -> None:
    other = subprocess.Popen(["sleep", "100"])
    process = start(waiting(tmp_path), other.pid)
    wait_for_file(tmp_path / "child")
    wait_for_file(tmp_path / "shell")
    other.kill()  # and nobody looks at its entry yet
    assert process.wait(PATIENCE_S) == 3
    other.wait()
    assert_ended(tmp_path)


def test_one_that_does_not_listen_is_killed(tmp_path: Path) -> None:
    code = "import flows.leash as leash, sys; leash.PATIENCE_S = 0.5; sys.exit(leash.hold(sys.argv[1:], []) != -9)"
    script = f"trap '' TERM; echo $$ > {tmp_path}/shell; while :; do sleep 0.05; done"
    process = subprocess.Popen([sys.executable, "-c", code, "sh", "-c", script], env=ENVIRONMENT)
    shell = int(wait_for_file(tmp_path / "shell"))
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert is_gone(shell)
