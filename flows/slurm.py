"""`python -m flows.slurm COMMAND...`: run a command as a job of Slurm, and follow it.

In: a command, and the options of sbatch in CLIP4VLA_SBATCH. Out: what the job prints, and an exit status: 0 where it
completed. `slurm/train.sbatch` runs the command, so that Slurm queues it again where a node fails or the job must make
way; it is still the same job, which is followed to its end. SIGTERM cancels it. Flows run the stages that train so.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from clip4vla.utils.variables import SBATCH

TRAINS = ("pretrain", "finetune", "ablate")
"""Stages that train, without what follows an @."""
TEMPLATE = Path(__file__).parents[1] / "slurm/train.sbatch"
OUTPUT = Path("checkpoints")
"""Where a job's output is until it has been printed; the nodes see it, too."""
ENDED = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT")
POLL_S = 2.0
SILENCE_S = 600.0
"""How long Slurm may leave the question for a job unanswered, such as while its controller restarts."""


def runs_on_slurm(stage: str) -> bool:
    """Whether a stage of dvc.yaml runs as a job."""
    return SBATCH in os.environ and stage.partition("@")[0] in TRAINS


def on_slurm(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` as a job and follows it."""
    return [sys.executable, "-m", "flows.slurm", *command]


def run_job(command: Sequence[str], options: Sequence[str], stop: Callable[[], bool]) -> str:
    """Submit a job, print what it prints, and return the state in which it ended, such as COMPLETED.

    Args:
        command: what it runs.
        options: of sbatch.
        stop: where it is true, the job is cancelled.

    Raises:
        RuntimeError: Slurm refuses the job, or doesn't say what became of it.
    """
    OUTPUT.mkdir(exist_ok=True)
    job = _call("sbatch", "--parsable", f"--output={OUTPUT}/job-%j.log", *options, str(TEMPLATE), *command)
    job = job.partition(";")[0]  # what may follow is the name of the cluster
    print(f"job {job}: submitted", flush=True)
    log = OUTPUT / f"job-{job}.log"
    state, shown, answered, is_cancelled = "", 0, time.monotonic(), False
    while state not in ENDED:
        if stop() and not is_cancelled:
            _call("scancel", job)
            is_cancelled = True
        try:
            now = _state(job)
            answered = time.monotonic()
        except RuntimeError:
            if time.monotonic() > answered + SILENCE_S:
                raise
            now = state
        if now != state:
            print(f"job {job}: {now}", flush=True)
            state = now
        shown = _print_from(log, shown)
        time.sleep(0 if state in ENDED else POLL_S)
    _print_from(log, shown)
    log.unlink(missing_ok=True)
    return state


def _state(job: str) -> str:
    found = re.search(r"\bJobState=(\w+)", _call("scontrol", "--oneliner", "show", "job", job))
    assert found is not None
    return found[1]


def _call(*command: str) -> str:
    """What a command of Slurm prints.

    Raises:
        RuntimeError: it isn't there, or fails; the message has its last line.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError(f"{command[0]} isn't installed here, but {SBATCH} is set") from None
    if done.returncode:
        words = done.stderr.strip().rpartition("\n")[2]
        raise RuntimeError(f"{command[0]} ended with status {done.returncode}: {words}")
    return done.stdout.strip()


def _print_from(log: Path, shown: int) -> int:
    """Print the whole lines of a file from a byte on; the byte after them."""
    if not log.is_file():
        return shown
    with log.open("rb") as file:
        file.seek(shown)
        whole = file.read().rpartition(b"\n")
    new = b"".join(whole[:2])
    print(new.decode(errors="replace"), end="", flush=True)
    return shown + len(new)


def main() -> None:
    """Run the command on the command line as a job."""
    asked: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: asked.append(number))
    try:
        state = run_job(sys.argv[1:], shlex.split(os.environ[SBATCH]), lambda: bool(asked))
    except RuntimeError as error:
        sys.exit(f"clip4vla: Slurm: {error}")
    if state != "COMPLETED":
        sys.exit(f"the job ended as {state}")


if __name__ == "__main__":
    main()
