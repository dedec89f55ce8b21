"""`python -m clip4vla.utils.supervise [--also PID]... COMMAND...`: run a command that must not outlive its parent.

In: a command line. Out: its exit status. The command runs in a process group of its own. When this process gets SIGTERM
or SIGHUP, or when its parent or a process named by `--also` has ended (killed with -9, it could not end the command
itself), the command and all its descendants are terminated, and killed if they do not end in time.

This module also holds every other lookup of processes: who is alive, who works in a directory, who is whose child. It
wraps every command that a flow starts, so it imports psutil and nothing else that is slow.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from argparse import REMAINDER, ArgumentParser
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

PATIENCE_S = 60.0
"""Time between SIGTERM and SIGKILL; a training has 30 s of it to write its checkpoint."""
KILL_S = 10.0
"""Time in which a process must be gone after SIGKILL."""
POLL_S = 0.1
PARENT_POLL_S = 1.0


def supervised(command: Sequence[str], *pids: int) -> list[str]:
    """The command line that runs `command` until it ends, or until its parent, this process or one of `pids` ends."""
    also = [word for pid in (os.getpid(), *pids) for word in ("--also", str(pid))]
    return [sys.executable, "-m", "clip4vla.utils.supervise", *also, *command]


def supervise(command: Sequence[str], also: Sequence[int] = ()) -> int:
    """Run `command` until it ends, or until this process is asked to stop or its parent or one of `also` has ended.

    It replaces the handlers of SIGTERM, SIGHUP and SIGINT, so it belongs in the main thread of a process of its own.

    Returns:
        The exit status of the command, negative where a signal ended it.

    Raises:
        ValueError: one of `also` has already ended; the command is not started.
        TimeoutError: a process of the command is still there after SIGKILL.
    """
    parent, watched = os.getppid(), [_find(pid) for pid in also]
    received: list[int] = []
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: received.append(number))
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C reaches the parent too, which decides
    process = subprocess.Popen(command, process_group=0)
    # not process.poll(): it would free the id, and another process could get it before the group is signalled
    while is_alive(process.pid) and not received and os.getppid() == parent and all(map(is_alive, watched)):
        time.sleep(POLL_S)
    end_process_tree(process.pid)
    return process.wait()


def end_process_tree(leader: int, patience_s: float = PATIENCE_S) -> None:
    """Terminate the process group and the descendants of `leader`, and kill what is left after `patience_s` seconds.

    SIGTERM goes to the group first. Descendants that have left the group get it once the group has ended: until then
    it is for their parents to end them (torchrun's ranks, and a rank's loader workers, need an orderly end). Zombies
    are not reaped: the caller still reads the exit status of its child.

    Raises:
        TimeoutError: a process is still there after SIGKILL.
    """
    deadline = time.monotonic() + patience_s
    tree = _tree_of(leader)
    group = {process for process in tree if leader in (process.pid, _group_of(process))}
    _send(signal.SIGTERM, group)
    tree = _wait_for(group, tree, leader, deadline)
    _send(signal.SIGTERM, tree - group)
    tree = _wait_for(tree, tree, leader, deadline)
    _kill(tree, leader)


def kill_process_tree(leader: int) -> None:
    """Send SIGKILL to the process group and the descendants of `leader`, and wait until they are gone.

    Raises:
        TimeoutError: a process is still there after SIGKILL.
    """
    _kill(_tree_of(leader), leader)


def is_alive(process: int | psutil.Process) -> bool:
    """Whether the process runs: a zombie, or another process with a reused id, does not count."""
    try:
        found = psutil.Process(process) if isinstance(process, int) else process
        return found.is_running() and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def children(pid: int) -> list[psutil.Process]:
    """The living direct children of a process; none where the process itself has ended."""
    try:
        return [child for child in psutil.Process(pid).children() if is_alive(child)]
    except psutil.NoSuchProcess:
        return []


def tree_memory(pid: int) -> int:
    """Bytes of memory that a process and its descendants have resident; what several of them share counts for each."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for member in [process, *process.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                total += member.memory_info().rss
    return total


def processes_in(directory: Path) -> dict[int, list[str]]:
    """Command line by process id of the other living processes whose working directory is `directory`."""
    place, found = str(directory.resolve()), {}
    for process in _running():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # ended meanwhile, or not ours
            if process.pid != os.getpid() and process.cwd() == place:
                found[process.pid] = process.cmdline()
    return found


def wait_until_none_in(directory: Path, timeout_s: float = PATIENCE_S) -> None:
    """Return when no other process has `directory` as its working directory.

    Raises:
        TimeoutError: one still has after `timeout_s` seconds; the message names it.
    """
    deadline = time.monotonic() + timeout_s
    while left := processes_in(directory):
        if time.monotonic() > deadline:
            raise TimeoutError(f"still working in {directory} after {timeout_s:g} s: {left}")
        time.sleep(POLL_S)


def exit_with_parent() -> None:
    """Start a daemon thread that exits this process with status 1 when its parent has ended.

    A parent that is killed with -9 cannot end its children.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        print(f"the parent process {parent} has ended; process {os.getpid()} exits", file=sys.stderr, flush=True)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _find(pid: int) -> psutil.Process:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        raise ValueError(f"process {pid} has already ended") from None


def _tree_of(leader: int) -> set[psutil.Process]:
    """The living members of the group that `leader` leads, `leader` itself, and all their descendants."""
    return _living({process for process in _running() if process.pid == leader}, leader)


def _living(known: set[psutil.Process], group: int) -> set[psutil.Process]:
    """The living among `known` and the members of `group`, and all their descendants."""
    running = _running()
    found = {process for process in running if process in known or _group_of(process) == group}
    while more := {p for p in running if p.info["ppid"] in {parent.pid for parent in found}} - found:
        found |= more
    return found


def _running() -> list[psutil.Process]:
    """All processes but zombies, with parent and creation time in `info`."""
    psutil.process_iter.cache_clear()  # it would not notice that an id has been reused
    found = psutil.process_iter(["ppid", "status", "create_time"])
    return [process for process in found if process.info["status"] != psutil.STATUS_ZOMBIE]


def _group_of(process: psutil.Process) -> int | None:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return None


def _send(number: signal.Signals, processes: Iterable[psutil.Process]) -> None:
    """Send a signal to each, the oldest first: a parent then cannot react to the end of its children."""
    for process in sorted(processes, key=lambda process: (process.info["create_time"], process.pid)):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _wait_for(
    ending: set[psutil.Process], tree: set[psutil.Process], group: int, deadline: float
) -> set[psutil.Process]:
    """What is alive of `tree` and its descendants when all of `ending` have ended, or at `deadline`."""
    # not psutil.wait_procs: it would reap the leader, whose exit status is the caller's to read
    while ending & tree and time.monotonic() < deadline:
        time.sleep(POLL_S)
        tree = _living(tree, group)
    return tree


def _kill(tree: set[psutil.Process], group: int) -> None:
    """Send SIGKILL until nothing of `tree` is left, children that were started meanwhile included."""
    deadline = time.monotonic() + KILL_S
    while tree:
        _send(signal.SIGKILL, tree)
        time.sleep(POLL_S)
        tree = _living(tree, group)
        if tree and time.monotonic() > deadline:
            raise TimeoutError(f"still there {KILL_S:g} s after SIGKILL: {sorted(process.pid for process in tree)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Supervise the command on the command line and exit with its status, 128 + N where signal N ended it."""
    parser = ArgumentParser(prog="python -m clip4vla.utils.supervise", description=__doc__)
    parser.add_argument("--also", type=int, action="append", default=[], metavar="PID", help="end when it ends")
    parser.add_argument("command", nargs=REMAINDER)
    settings = parser.parse_args(arguments)
    if not settings.command:
        parser.error("no command is given")
    try:
        status = supervise(settings.command, settings.also)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        sys.exit(f"{' '.join(settings.command)}: {error}")
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
