"""`python -m flows.leash [--with PID]... COMMAND...`: a command that doesn't outlive those it works for.

It runs in a process group of its own. When this process is asked to end, or its parent or a process named by `--with`
is gone (killed, so that nothing could be done about it from within), every process of that group is asked to end, and
killed where it hasn't after a while. The exit status is the command's.
"""

import os
import signal
import subprocess
import sys
import time
from argparse import REMAINDER, ArgumentParser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

PATIENCE_S = 60.0
"""Time that the group has to end; a training has 30 s of it to write its checkpoint."""
LOOK_EVERY_S = 0.5


def leashed(command: Sequence[str], *others: int) -> list[str]:
    """The command line of `command` on a leash that the process which starts it holds, and each of `others`."""
    held = [word for pid in others for word in ("--with", str(pid))]
    return [sys.executable, "-m", "flows.leash", *held, *command]


def hold(command: Sequence[str], others: Sequence[int]) -> int:
    """Run `command` until it ends or is to end; its exit status, negative where a signal ended it."""
    parent = os.getppid()
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        asked.append(number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, note)
    signal.signal(signal.SIGINT, lambda *_: None)  # a terminal's Ctrl-C reaches the parent too, which decides
    process = subprocess.Popen(command, process_group=0)
    while process.poll() is None and not asked and os.getppid() == parent and not any(map(is_gone, others)):
        with suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_EVERY_S)
    end_group(process)
    return process.wait()


def is_gone(pid: int) -> bool:
    """Whether there is no such process any more, or only its entry, which nobody has looked at yet."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    return False


def end_group(leader: "subprocess.Popen[bytes]") -> None:
    """Ask every process of the leader's group to end, wait, and kill those that are still there after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    anybody = _signal_group(leader.pid, signal.SIGTERM)
    while anybody and time.monotonic() < deadline:
        time.sleep(LOOK_EVERY_S / 5)
        leader.poll()  # or its entry stays in the group
        anybody = _signal_group(leader.pid, 0)
    if anybody:
        _signal_group(leader.pid, signal.SIGKILL)


def _signal_group(group: int, number: int) -> bool:
    """Whether there was anybody to signal."""
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return False
    return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Hold the command on the command line."""
    parser = ArgumentParser(prog="python -m flows.leash", description=__doc__)
    parser.add_argument("--with", type=int, action="append", default=[], dest="others", metavar="PID")
    parser.add_argument("command", nargs=REMAINDER)
    settings = parser.parse_args(arguments)
    status = hold(settings.command, settings.others)
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
