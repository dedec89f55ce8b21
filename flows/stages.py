"""One stage of `dvc.yaml` as a Prefect task: `dvc repro --single-item STAGE`, with progress and a report as artifacts.

In: a stage's name. Out: a Prefect state called Unchanged or Done, or a failure with DVC's reason. DVC runs supervised:
when the flow, or the worker that started it, is killed, it ends and its trainings leave a checkpoint.
"""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.client.schemas.objects import State
from prefect.states import Completed

from clip4vla.pipeline.dvc_files import repair
from clip4vla.records import TASKS
from clip4vla.training.spec import PROGRESS_FILE
from clip4vla.utils.supervise import PATIENCE_S, supervised
from flows.notifications import emit_decision
from flows.slurm import on_slurm, runs_on_slurm

UNCHANGED, DONE, FAILED = "Unchanged", "Done", "Failed"
FLOW_RUN_VARIABLE = "PREFECT__FLOW_RUN_ID"
"""Set by a worker for the process of a flow run."""
PROGRESS_EVERY_S = 5.0
REPORT_S = 15.0
"""Time in which a flow whose worker is gone can still report that it failed."""
LAST_LINES = 40
"""Lines of DVC's output in which the reason for a failure is looked for."""


@dataclass(frozen=True)
class StageResult:
    """How a stage ended."""

    stage: str
    state: str
    """UNCHANGED, DONE or FAILED."""
    seconds: float
    headline: str
    """Its headline score, see `clip4vla.pipeline.summary`."""


def run_stage(stage: str, after: Sequence[State[Any]], force: bool, retries: int) -> State[Any]:
    """Run `stage` as a Prefect task of that name.

    Args:
        stage: its name in dvc.yaml.
        after: the states of the stages that it depends on, which Prefect draws as edges.
        force: run it even if nothing changed.
        retries: how often a failure is tried again.
    """
    task_of_stage = task(name=stage, task_run_name=stage, retries=retries)(reproduce_stage)
    return task_of_stage(stage, force, wait_for=list(after), return_state=True)


def reproduce_stage(stage: str, force: bool) -> State[Any]:
    """The body of the task: bring one stage up to date and show what it left.

    Raises:
        RuntimeError: DVC failed; the message says why.
    """
    start = time.monotonic()
    changed = reproduce(stage, force)
    summary = _summarise(stage)
    if changed and summary.report:
        key = stage.replace("@", "-").replace("_", "-").replace(".", "-").lower()  # Prefect's allowed characters
        create_markdown_artifact(summary.report, key=key, description=f"Results of the stage {stage}")
    if changed:
        _announce_decision(stage, summary.report)
    state = DONE if changed else UNCHANGED
    result = StageResult(stage, state, time.monotonic() - start, summary.headline)
    return Completed(name=state, message=summary.headline or None, data=result)


def _summarise(stage: str) -> Any:
    from clip4vla.pipeline.summary import summarise_stage

    return summarise_stage(stage)


def _announce_decision(stage: str, report: str) -> None:
    """After a promotion stage, tell Prefect what was decided: its automations pass it on."""
    from clip4vla.pipeline.summary import read_decision

    for name in TASKS:
        if stage == f"promote@{name}":
            decision = read_decision(name)
            assert decision is not None  # the report was made of it
            emit_decision(decision["model"], decision["version"], decision["promote"], report)


def reproduce(stage: str, force: bool) -> bool:
    """Run `dvc repro --single-item STAGE`, pass on what it prints, and return whether the stage was run or restored.

    Where `flows.slurm` is configured, a stage that trains runs as a job of Slurm.

    Raises:
        RuntimeError: it failed; a concurrent `dvc` that blocks it is named.
    """
    repair()  # what a DVC of this flow that was killed has left, before the stage is tried again
    worker = os.getppid() if FLOW_RUN_VARIABLE in os.environ else None
    command = [sys.executable, "-m", "dvc", "repro", "--single-item", *(["--force"] if force else []), stage]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    process = subprocess.Popen(
        supervised(on_slurm(command) if runs_on_slurm(stage) else command, *([worker] if worker else [])),
        env=os.environ | {"PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    if worker:
        _end_with(worker, process)
    progress, lines = TrainingProgress(Path.cwd() / "checkpoints"), deque[str](maxlen=LAST_LINES)
    is_unchanged = False
    try:
        assert process.stdout is not None
        for output in process.stdout:
            print(output, end="", flush=True)
            lines.append(output)
            is_unchanged |= "didn't change, skipping" in output
            progress.show()
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(2 * PATIENCE_S)
    if code:
        raise RuntimeError(f"`{' '.join(command[2:])}` ended with status {code}: {_reason(''.join(lines))}")
    return not is_unchanged


def _end_with(worker: int, process: "subprocess.Popen[str]") -> None:
    """End this process soon after its worker is gone, and DVC with it.

    Prefect would otherwise keep trying to reach a server that may be gone as well.
    """

    def watch() -> None:
        while os.getppid() == worker:
            time.sleep(1.0)
        process.wait()
        time.sleep(REPORT_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _reason(output: str) -> str:
    """Why DVC failed, by its last lines."""
    blocking = re.findall(r"\(PID (\d+)\): (.+)", output) if "is being blocked by" in output else []
    if blocking:
        others = ", ".join(f"`dvc {command}`, process {pid}" for pid, command in blocking)
        return f"another command uses the same files ({others}); start this one again when it has ended"
    if "Unable to acquire lock" in output:
        return "another dvc command runs in this project; start this one again when it has ended"
    errors = [line for line in output.splitlines() if line.startswith("clip4vla: ")]
    return errors[-1] if errors else "its output above says why"


class TrainingProgress:
    """How far the trainings under `checkpoints` are, as artifacts that Prefect draws as bars.

    A training leaves a file with its step; one older than this object belongs to a training that was stopped.
    """

    def __init__(self, checkpoints: Path) -> None:
        self._checkpoints = checkpoints
        self._begun = time.time()
        self._next = time.monotonic() + PROGRESS_EVERY_S
        self._artifacts: dict[Path, UUID] = {}

    def show(self) -> None:
        """Update the artifacts, every few seconds at most; a training that has ended stands at 100."""
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
                assert isinstance(made, UUID)  # outside of an event loop it is no coroutine
                self._artifacts[path] = made

    def _read(self, path: Path) -> float | None:
        """Per cent of the steps done; None where the training is not a current one, or has just ended."""
        try:
            if path.stat().st_mtime < self._begun:
                return None
            state = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return 100.0 * float(state["step"]) / float(state["steps"])
