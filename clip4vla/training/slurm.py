"""The Slurm job that a training runs in: whether Slurm ends it, and how its steps are asked to stop.

In: the environment that Slurm gives a job. Out: answers of `squeue`, and the command line of `scancel`.
"""

import shutil
import subprocess
from collections.abc import Mapping

JOB_VARIABLE = "SLURM_JOB_ID"
GOES_ON = ("RUNNING", "SUSPENDED", "SIGNALING", "RESIZING")
"""States of a job whose steps may be started again."""


def ending_job(environment: Mapping[str, str]) -> str | None:
    """The job of `environment` and its state, such as `5 (COMPLETING)`, where Slurm is ending it, else None.

    It is ending when it was cancelled, preempted or lost a node. Where Slurm doesn't answer, nothing is known of that.
    """
    job = environment.get(JOB_VARIABLE)
    if job is None or shutil.which("squeue") is None:
        return None
    command = ["squeue", "--noheader", "--jobs", job, "--states", "all", "--format", "%T"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
    state = answer.stdout.strip()
    return f"{job} ({state})" if state and state not in GOES_ON else None


def stop_command(job: str) -> list[str]:
    """Send SIGTERM to the ranks of all nodes; `srun` itself would kill them at that signal."""
    return ["scancel", "--quiet", "--signal=TERM", job]
