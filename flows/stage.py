"""What the flows have in common: steps that are plain functions, run as Prefect tasks, through DVC or by it.

`python -m flows.NAME` is the command of the DVC stage NAME. Started by a person's `dvc repro`, it is a Prefect flow
whose steps are tasks. A deployment starts the flow with `through_dvc`, which runs `dvc repro NAME`; the command
inside then finds a mark in its environment and runs the steps plainly, so that there is one flow run, `dvc.lock`
is true and a cancelled run leaves nothing behind. DVC runs on a leash: a flow that is killed, or whose worker is,
takes it and its trainings along, which leave a checkpoint.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from prefect import Flow, task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact

from clip4vla.training.job import PROGRESS_FILE
from flows.leash import PATIENCE_S, leashed

MARK = "CLIP4VLA_INSIDE_FLOW"
DEPLOYED = "PREFECT__FLOW_RUN_ID"
"""What a worker tells the process of a flow run."""
PROGRESS_EVERY_S = 5.0
REPORT_S = 15.0
"""Time that a flow whose worker is gone has to report that it failed."""
LAST_WORDS = 40
"""Lines of DVC's output in which the reason for a failure is looked for."""


@dataclass(frozen=True)
class Stage:
    """One DVC stage that is a flow."""

    name: str
    """Of the DVC stage."""
    steps: tuple[Callable[[], None], ...]
    """What is done, in order; a step leaves its results in files and can be run again."""
    report: Callable[[], str]
    """Markdown about the results, shown in Prefect."""

    def run(self, through_dvc: bool, force: bool, onwards: "tuple[Stage, ...]" = ()) -> None:
        """The body of the flow: the steps as tasks, or all of them through DVC, then the report.

        Args:
            onwards: the stages of the rest of the graph, in order, where they are to be gone through as well.
        """
        if through_dvc:
            if force or not onwards:
                task(name=f"dvc repro {self.name}")(reproduce)(self.name, force)
            if onwards:
                task(name="dvc repro")(reproduce)(None, False)
        else:
            for step in (step for stage in (self, *onwards) for step in stage.steps):
                task(step)()
        for stage in (self, *onwards):
            create_markdown_artifact(stage.report(), key=stage.name, description=f"Results of the stage {stage.name}")

    def main(self, flow: Flow[..., None]) -> None:
        """The body of `python -m flows.NAME`, which ends with what the user is to do where that is known."""
        if os.environ.get(MARK):
            for step in self.steps:
                step()
            return
        try:
            flow()
        except ValueError as error:  # Prefect has shown where
            sys.exit(f"{self.name}: {error}")


def reproduce(stage: str | None, force: bool) -> None:
    """Run `dvc repro STAGE` (with `force`, that stage even if nothing changed) and pass on what it prints.

    Args:
        stage: None for the whole graph.

    Raises:
        RuntimeError: it failed; another `dvc repro` of the same stages makes it fail too, and is named.
    """
    worker = os.getppid() if DEPLOYED in os.environ else None
    command = [sys.executable, "-m", "dvc", "repro", *([stage] if stage else []), *(["-f", "-s"] if force else [])]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    process = subprocess.Popen(
        leashed(command, *([worker] if worker else [])),
        env=os.environ | {MARK: "1", "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    if worker:
        _end_with(worker, process)
    progress, said = Progress(Path.cwd() / "checkpoints"), deque[str](maxlen=LAST_WORDS)
    try:
        assert process.stdout is not None
        for output in process.stdout:
            print(output, end="", flush=True)
            said.append(output)
            progress.show()
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(2 * PATIENCE_S)
    if code:
        raise RuntimeError(f"`{' '.join(command[2:])}` ended with status {code}: {_why(''.join(said))}")


def _end_with(worker: int, process: "subprocess.Popen[str]") -> None:
    """End this process soon after its worker is gone, and DVC with it.

    Prefect would go on trying to tell a server about it that may be gone as well.
    """

    def watch() -> None:
        while os.getppid() == worker:
            time.sleep(1.0)
        process.wait()
        time.sleep(REPORT_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _why(said: str) -> str:
    """What DVC's last words mean."""
    busy = re.findall(r"\(PID (\d+)\): (.+)", said) if "is being blocked by" in said else []
    if busy:
        others = ", ".join(f"`dvc {command}`, process {pid}" for pid, command in busy)
        return f"another one is at work on the same files ({others}); start this one again when that has ended"
    if "Unable to acquire lock" in said:
        return "another dvc command is at work in this project; start this one again when that has ended"
    return "its output above says why"


class Progress:
    """How far the trainings under `checkpoints` are, as artifacts that Prefect draws as bars.

    A training leaves a file that says so; one from before this object was made is of a training that was stopped.
    """

    def __init__(self, checkpoints: Path) -> None:
        self._checkpoints = checkpoints
        self._begun = time.time()
        self._next = time.monotonic() + PROGRESS_EVERY_S
        self._artifacts: dict[Path, UUID] = {}

    def show(self) -> None:
        """Bring the artifacts up to date, every few seconds at most; a training that has ended stands at 100."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + PROGRESS_EVERY_S
        found = {path: per_cent for path in self._checkpoints.rglob(PROGRESS_FILE) if (per_cent := self._read(path))}
        for path, per_cent in (dict.fromkeys(self._artifacts, 100.0) | found).items():
            if path in self._artifacts:
                update_progress_artifact(self._artifacts[path], per_cent)
            else:
                name = path.parent.relative_to(self._checkpoints).as_posix()
                key = "progress-" + re.sub("[^a-z0-9]+", "-", name.lower())
                made = create_progress_artifact(per_cent, key=key, description=f"Training {name}")
                assert isinstance(made, UUID)  # not a coroutine: a flow's tasks aren't asynchronous
                self._artifacts[path] = made

    def _read(self, path: Path) -> float | None:
        """Per cent of the steps done; None where the training isn't of now, or has just ended."""
        try:
            if path.stat().st_mtime < self._begun:
                return None
            state = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return 100.0 * float(state["step"]) / float(state["steps"])
