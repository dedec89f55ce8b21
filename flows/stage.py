"""What the flows have in common: steps that are plain functions, run as Prefect tasks, through DVC or by it.

`python -m flows.NAME` is the command of the DVC stage NAME, and with a further word that of NAME@WORD. Started by a
person's `dvc repro`, it is a Prefect flow whose steps are tasks. A deployment starts the flow with `through_dvc`,
which runs `dvc repro NAME`; the command inside then finds a mark in its environment and runs the steps plainly, so
that there is one flow run, `dvc.lock` is true and a cancelled run leaves nothing behind.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact

MARK = "CLIP4VLA_INSIDE_FLOW"
TERMINATE_S = 90.0
"""Seconds that DVC and what it runs have to end when a run is cancelled; a training writes its checkpoint."""


@dataclass(frozen=True)
class Stage:
    """One DVC stage that is a flow."""

    name: str
    """Of the DVC stage."""
    steps: tuple[Callable[[], None], ...]
    """What is done, in order; a step leaves its results in files and can be run again."""
    report: Callable[[], str]
    """Markdown about the results, shown in Prefect."""

    def run(self, through_dvc: bool, force: bool) -> None:
        """The body of the flow: the steps as tasks, or all of them through DVC, then the report."""
        if through_dvc:
            task(name=f"dvc repro {self.name}")(reproduce)(self.name, force)
        else:
            for step in self.steps:
                task(name=_name_of(step))(step)()
        key = self.name.replace("@", "-")  # Prefect takes letters, digits and dashes
        create_markdown_artifact(self.report(), key=key, description=f"Results of the stage {self.name}")

    def main(self, flow: Callable[[], None]) -> None:
        """The body of `python -m flows.NAME`, which ends with what the user is to do where that is known."""
        if os.environ.get(MARK):
            for step in self.steps:
                step()
            return
        try:
            flow()
        except ValueError as error:  # Prefect has shown where
            sys.exit(f"{self.name}: {error}")


def _name_of(step: Callable[[], None]) -> str:
    """Of a step, or of the function that it is the partial of."""
    name: str = getattr(step, "func", step).__name__
    return name


def reproduce(stage: str, force: bool) -> None:
    """Run `dvc repro STAGE` (with `force`, that stage even if nothing changed) and pass on what it prints.

    Raises:
        RuntimeError: it failed; another `dvc repro` at the same time makes it fail too.
    """
    command = [sys.executable, "-m", "dvc", "repro", stage, *(["-f", "-s"] if force else [])]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    process = subprocess.Popen(
        command, env=os.environ | {MARK: "1", "PATH": path}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        for output in process.stdout:
            print(output, end="", flush=True)
        code = process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(TERMINATE_S)
    if code:
        raise RuntimeError(f"dvc repro {stage} ended with status {code}; its output above says why")
