"""A supervised command ends by itself, when it is asked to, and when a process it must not outlive has ended."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from clip4vla.utils.supervise import (
    children,
    end_process_tree,
    is_alive,
    kill_process_tree,
    processes_in,
    supervised,
    wait_until_none_in,
)
from tests.project import REPOSITORY

PATIENCE_S = 30.0
ENVIRONMENT = os.environ | {"PYTHONPATH": str(REPOSITORY)}


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


def start(script: str, *pids: int) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(supervised(["sh", "-c", script], *pids), env=ENVIRONMENT)


def wait_for_file(path: Path) -> str:
    deadline = time.monotonic() + PATIENCE_S
    while not (path.is_file() and path.read_text().endswith("\n")):
        assert time.monotonic() < deadline, f"{path} is missing"
        time.sleep(0.05)
    return path.read_text().strip()


def wait_until_ended(pid: int) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while is_alive(pid):
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.05)


def waiting(directory: Path) -> str:
    """A shell with a child, both of which write their ids and wait; the shell records SIGTERM and exits with 3."""
    inner = f"echo $$ > {directory}/child; exec sleep 100"
    return (
        f"trap 'echo asked > {directory}/asked; exit 3' TERM; sh -c '{inner}' & "
        f"echo $$ > {directory}/shell; while :; do sleep 0.05; done"
    )


def assert_ended(directory: Path) -> None:
    assert wait_for_file(directory / "asked") == "asked"
    for name in ("child", "shell"):
        wait_until_ended(int(wait_for_file(directory / name)))


@pytest.mark.parametrize("status", [0, 7])
def test_the_exit_status_of_the_command_is_returned(status: int) -> None:
    assert start(f"exit {status}").wait(PATIENCE_S) == status


def test_a_command_that_a_signal_ended_exits_as_in_a_shell() -> None:
    assert start("kill -KILL $$").wait(PATIENCE_S) == 128 + signal.SIGKILL


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command is given"),
        (["no-such-program", "x"], "no-such-program x: .*No such file"),
        (["--also", "4194305", "true"], "true: process 4194305 has already ended"),  # above the kernel's largest id
    ],
)
def test_a_command_that_cannot_run_is_one_line(arguments: list[str], message: str) -> None:
    command = [sys.executable, "-m", "clip4vla.utils.supervise", *arguments]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.returncode in (1, 2)
    assert re.search(message, done.stderr.splitlines()[-1])
    assert "Traceback" not in done.stderr


def test_what_a_command_leaves_behind_is_ended(tmp_path: Path) -> None:
    child = tmp_path / "child"
    process = start(f"sh -c 'echo $$ > {child}; exec sleep 100' & until [ -s {child} ]; do sleep 0.05; done")
    assert process.wait(PATIENCE_S) == 0
    assert not is_alive(int(wait_for_file(child)))


def test_sigterm_reaches_the_group_and_sigint_does_not(tmp_path: Path) -> None:
    process = start(waiting(tmp_path))
    wait_for_file(tmp_path / "child")
    wait_for_file(tmp_path / "shell")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert not (tmp_path / "asked").exists()
    process.terminate()
    assert process.wait(PATIENCE_S) == 3
    assert_ended(tmp_path)


def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = f"import subprocess; subprocess.run({supervised(['sh', '-c', waiting(tmp_path)])!r})"
    parent = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT)
    wait_for_file(tmp_path / "child")
    wait_for_file(tmp_path / "shell")
    parent.kill()
    parent.wait()
    assert_ended(tmp_path)


def test_it_ends_when_another_process_is_killed(tmp_path: Path, sleeper: "subprocess.Popen[bytes]") -> None:
    process = start(waiting(tmp_path), sleeper.pid)
    wait_for_file(tmp_path / "child")
    wait_for_file(tmp_path / "shell")
    sleeper.kill()  # a zombie from now on
    assert process.wait(PATIENCE_S) == 3
    assert_ended(tmp_path)


def test_one_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys; from clip4vla.utils import supervise as s; end = s.end_process_tree; "
        "s.end_process_tree = lambda pid: end(pid, 0.5); sys.exit(s.supervise(sys.argv[1:]) != -9)"
    )
    script = f"trap '' TERM; echo $$ > {tmp_path}/shell; while :; do sleep 0.05; done"
    process = subprocess.Popen([sys.executable, "-c", code, "sh", "-c", script], env=ENVIRONMENT)
    shell = int(wait_for_file(tmp_path / "shell"))
    process.terminate()
    assert process.wait(PATIENCE_S) == 0
    assert not is_alive(shell)


def with_own_session(directory: Path) -> list[str]:
    """A leader that ends at SIGTERM, with a child in a session of its own that it leaves alone.

    The child records at SIGTERM whether the leader is still alive, and ends.
    """
    inner = (
        "import os, signal, time; from pathlib import Path; from clip4vla.utils.supervise import is_alive\n"
        "leader = os.getppid(); os.setsid()\n"
        "def end(*_):\n"
        f"    Path('{directory}/leader').write_text(f'{{is_alive(leader)}}\\n'); os._exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"Path('{directory}/inner').write_text(f'{{os.getpid()}}\\n'); time.sleep(100)\n"
    )
    code = (
        "import signal, subprocess, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(0.5), sys.exit(4)))\n"
        "subprocess.Popen([sys.executable, '-c', sys.argv[1]]); time.sleep(100)"
    )
    return [sys.executable, "-c", code, inner]


def test_a_grandchild_in_a_session_of_its_own_is_ended_after_the_group(tmp_path: Path) -> None:
    process = subprocess.Popen(supervised(with_own_session(tmp_path)), env=ENVIRONMENT)
    inner = int(wait_for_file(tmp_path / "inner"))
    assert os.getpgid(inner) == inner
    process.terminate()
    assert process.wait(PATIENCE_S) == 4
    assert not is_alive(inner)
    assert wait_for_file(tmp_path / "leader") == "False"


def test_a_grandchild_in_a_session_of_its_own_is_killed_with_the_tree(tmp_path: Path) -> None:
    leader = subprocess.Popen(with_own_session(tmp_path), env=ENVIRONMENT, process_group=0)
    inner = int(wait_for_file(tmp_path / "inner"))
    kill_process_tree(leader.pid)
    assert leader.wait(PATIENCE_S) == -signal.SIGKILL
    assert not is_alive(inner)
    assert not (tmp_path / "leader").exists()


def test_ending_a_tree_leaves_the_exit_status_and_other_processes(sleeper: "subprocess.Popen[bytes]") -> None:
    leader = subprocess.Popen(["sleep", "100"])  # in the group of this process
    end_process_tree(leader.pid)
    assert leader.wait(PATIENCE_S) == -signal.SIGTERM
    assert is_alive(sleeper.pid)
    end_process_tree(leader.pid)  # nothing is left, nothing happens
    assert is_alive(sleeper.pid)


def test_a_zombie_is_not_alive_and_no_child(sleeper: "subprocess.Popen[bytes]") -> None:
    assert is_alive(sleeper.pid)
    assert sleeper.pid in {child.pid for child in children(os.getpid())}
    sleeper.kill()
    wait_until_ended(sleeper.pid)
    assert sleeper.returncode is None
    assert sleeper.pid not in {child.pid for child in children(os.getpid())}
    sleeper.wait()
    assert not is_alive(sleeper.pid)
    assert children(sleeper.pid) == []


def test_processes_are_found_by_their_working_directory(tmp_path: Path) -> None:
    place, link = tmp_path / "place", tmp_path / "link"
    (place / "below").mkdir(parents=True)
    link.symlink_to(place)
    here, below = (subprocess.Popen(["sleep", "100"], cwd=directory) for directory in (place, place / "below"))
    assert processes_in(link) == {here.pid: ["sleep", "100"]}
    with pytest.raises(TimeoutError, match=rf"still working in .*place after 0\.2 s: .*{here.pid}"):
        wait_until_none_in(place, 0.2)
    here.kill()  # a zombie, which works nowhere
    wait_until_none_in(place)
    assert list(processes_in(place / "below")) == [below.pid]
    for process in (here, below):
        process.kill()
        process.wait()


def test_a_process_exits_when_its_parent_is_killed(tmp_path: Path) -> None:
    child = (
        "import os, time; from pathlib import Path; from clip4vla.utils.supervise import exit_with_parent; "
        "exit_with_parent(); "
        f"Path('{tmp_path}/child').write_text(f'{{os.getpid()}}\\n'); time.sleep(100)"
    )
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    parent = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    pid = int(wait_for_file(tmp_path / "child"))
    time.sleep(1.5)
    assert is_alive(pid)
    parent.kill()
    _, errors = parent.communicate(timeout=PATIENCE_S)
    wait_until_ended(pid)
    assert f"the parent process {parent.pid} has ended; process {pid} exits" in errors


def test_it_imports_nothing_that_is_slow() -> None:
    code = "import sys, clip4vla.utils.supervise; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    third_parties = set(done.stdout.split()) - sys.stdlib_module_names - {"clip4vla"}
    assert "psutil" in third_parties
    assert not third_parties & {"torch", "numpy", "pydantic", "rich", "mlflow", "prefect", "yaml", "pandas"}
