"""`dvc repro` in a scratch project, watched: time, memory and disk of each stage, and why one failed.

DVC runs in processes of its own. Its output is kept in a file; the lines in it that say which stage begins divide the
time. They are ended with this process, also when that is killed.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clip4vla.config import read_yaml
from clip4vla.rehearsal.scratch import environment
from clip4vla.utils.progress import repeated
from clip4vla.utils.supervise import kill_process_tree, supervised, tree_memory

LOG = "rehearsal.log"
LOOK_EVERY_S = 0.5
BEGINS = re.compile(r"Running stage '([^']+)'")
OURS = "clip4vla: "
"""Begins the message of a command that fails."""
ENDS = "ERROR: "
"""Begins DVC's own."""
LAST_LINES = 3


@dataclass(frozen=True)
class StageFigures:
    """What a stage took."""

    stage: str
    seconds: float
    """From its start to that of the next stage: DVC's own work for it included."""
    memory: int
    """Most bytes that all processes had resident together; memory that they share counts for each."""
    disk: int
    """Bytes of its outputs; DVC's copy isn't counted."""


class StageFailedError(RuntimeError):
    """A stage failed; the message is the stage's."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"the stage {stage} failed: {message}")
        self.stage = stage


def reproduce(root: Path, arguments: Sequence[str], done: Callable[[StageFigures], None]) -> list[StageFigures]:
    """Run `dvc repro` with `arguments` in the project at `root`; the figures of each stage that ran, in order.

    Args:
        done: gets the figures of each stage as soon as it has ended.

    Raises:
        StageFailedError: a stage failed.
    """
    watch = _Watch(root, done)
    command = supervised([sys.executable, "-m", "dvc", "repro", *arguments])
    with (
        (root / LOG).open("a", buffering=1, encoding="utf-8") as log,
        _process(command, root) as process,
        watch.memory_of(process.pid),
    ):
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            watch.read(line)
        code = process.wait()
    if code:
        raise StageFailedError(watch.stage or "params", _reason(watch.said))
    watch.end()
    return watch.figures


@contextmanager
def _process(command: Sequence[str], root: Path) -> Iterator["subprocess.Popen[str]"]:
    """A process in `root`, which is killed with all that it started when the block ends early."""
    process = subprocess.Popen(
        command,
        cwd=root,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_process_tree(process.pid)
            process.wait()


class _Watch:
    """Which stage is running, since when, and what it has taken so far."""

    def __init__(self, root: Path, done: Callable[[StageFigures], None]) -> None:
        self.stage = ""
        self.said: list[str] = []
        self.figures: list[StageFigures] = []
        self._root, self._done = root, done
        self._since, self._peak = time.monotonic(), 0

    def read(self, line: str) -> None:
        """Take in a line of output."""
        if begins := BEGINS.match(line):
            self.end()
            self.stage, self.said = begins[1], []
            self._since, self._peak = time.monotonic(), 0
        elif line.strip():
            self.said.append(line.rstrip())

    def end(self) -> None:
        """The stage has succeeded."""
        if not self.stage:
            return
        seconds = time.monotonic() - self._since
        found = StageFigures(self.stage, seconds, self._peak, output_bytes(self._root, self.stage))
        self.figures.append(found)
        self._done(found)

    @contextmanager
    def memory_of(self, pid: int) -> Iterator[None]:
        """Look at the memory of a process and its descendants every now and then."""

        def look() -> None:
            self._peak = max(self._peak, tree_memory(pid))

        with repeated(look, LOOK_EVERY_S):
            yield


def output_bytes(root: Path, stage: str) -> int:
    """Bytes of what a stage has written, as `dvc.lock` says; 0 for one that isn't there."""
    lock = root / "dvc.lock"
    found = read_yaml(lock)["stages"].get(stage, {}) if lock.is_file() else {}
    return sum(out.get("size", 0) for out in found.get("outs", ()))


def directory_bytes(directory: Path) -> int:
    """Bytes of all files under a directory; a file with several names counts once."""
    stats = [path.lstat() for path in directory.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values())


def _reason(said: Sequence[str]) -> str:
    """The message of the stage that printed `said` and failed."""
    starts = [index for index, line in enumerate(said) if line.startswith(OURS)]
    if not starts:
        return " / ".join(said[-LAST_LINES:])
    message = [said[starts[-1]].removeprefix(OURS)]
    for line in said[starts[-1] + 1 :]:
        if line.startswith(ENDS):
            break
        message.append(line)
    return "\n".join(message)
