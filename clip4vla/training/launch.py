"""A spec in, its model directory out: the ranks are started on this node, or on all that the environment names.

On one node torchrun's agent works in this process (see `node`), not in one of its own: a signal to it reaches the
ranks, which then leave a checkpoint, and the ranks notice when it is killed. For several nodes, `multinode` says what
starts them.
"""

import fcntl
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from clip4vla.config import TrainerConfig
from clip4vla.training.checkpoints import newest_checkpoint
from clip4vla.training.multinode import NodesCommand, several_nodes
from clip4vla.training.node import AGENT_SIGNALS, Node, failure_of_nodes, forget_failure, run_ranks
from clip4vla.training.slurm import ending_job
from clip4vla.training.spec import TrainSpec
from clip4vla.training.worker import STOPPED

POLL_S = 0.2
STOP_AGAIN_S = 5.0


def ranks_here(trainer: TrainerConfig) -> int:
    """Processes of a training on this node."""
    return trainer.ranks or torch.cuda.device_count() or trainer.cpu_ranks


def launch(spec: TrainSpec) -> None:
    """Train `spec` in processes of its own and wait for them. Rank 0 prints here.

    Raises:
        ValueError: the spec doesn't fit the data or this machine, or a loss isn't finite (known of ranks here).
        RuntimeError: the training failed, or another process is at it; the message names the rank that failed first
            and its last words. A checkpoint may be there, from which the same spec goes on.
        SystemExit: this process, or the ranks, were asked to stop, or Slurm ends the job; a checkpoint is there if
            training had begun.
    """
    spec.checkpoints.mkdir(parents=True, exist_ok=True)
    spec_file = spec.checkpoints / "spec.json"
    with _alone(spec.checkpoints / "lock"), _own_signals():
        spec.write(spec_file)
        ranks = ranks_here(spec.trainer)
        nodes = several_nodes(spec_file, ranks, os.environ)
        if nodes is None:
            run_ranks(spec_file, ranks, Node())
        else:
            _run_there(nodes, spec_file)


def launch_with_retries(spec: TrainSpec) -> None:
    """Train `spec`; after a failure, resume from its last checkpoint if the failed attempt has left a new one.

    A failure that repeats at the same place, or before there is a checkpoint, is raised. A training that is asked to
    stop says from where it will go on.

    Raises:
        ValueError, RuntimeError, SystemExit: see `launch`.
    """
    while True:
        before = _steps_kept(spec)
        try:
            launch(spec)
            return
        except RuntimeError as error:
            kept = _steps_kept(spec)
            if kept <= before:
                raise
            print(f"{error}\ngoing on from the checkpoint of step {kept}", flush=True)
        except SystemExit:
            print(_stopped_at(_steps_kept(spec)), flush=True)
            raise


def _steps_kept(spec: TrainSpec) -> int:
    """Steps behind the newest checkpoint of the spec."""
    notes = newest_checkpoint(spec.checkpoints / spec.fingerprint())
    return notes.step if notes else 0


def _stopped_at(kept: int) -> str:
    job = ending_job(os.environ)
    why = f"Slurm is ending job {job}" if job else "it was asked to"
    where = f"from the checkpoint of step {kept}" if kept else "from the beginning, there is no checkpoint yet"
    return f"the training has stopped, because {why}; started again, it goes on {where}"


def _run_there(nodes: NodesCommand, spec_file: Path) -> None:
    """Run the launcher of several nodes; the ranks there are asked to stop when this process is.

    It has a process group of its own: whoever signals all processes of this one's doesn't kill the ranks by it.
    """
    received: list[int] = []
    if threading.current_thread() is threading.main_thread():
        for number in AGENT_SIGNALS:
            signal.signal(number, lambda number, _: received.append(number))
    forget_failure(spec_file)
    process = subprocess.Popen(nodes.command, stdin=subprocess.DEVNULL, process_group=0)
    while process.poll() is None:
        if received:
            _ask_to_stop(process, nodes.stop)
        time.sleep(POLL_S)
    if process.returncode == 0:
        return
    if received or ending_job(os.environ):
        raise SystemExit(STOPPED)
    # before the status: srun ends the other nodes with SIGTERM when one fails
    if failure := failure_of_nodes(spec_file):
        raise failure
    if process.returncode == STOPPED:
        raise SystemExit(STOPPED)
    ended = f"{nodes.command[0]} ended with status {process.returncode}"
    raise RuntimeError(f"the training failed: {ended}; its output says which rank failed")


def _ask_to_stop(process: "subprocess.Popen[bytes]", command: list[str]) -> None:
    """Run the command that stops the ranks until there are none: it does nothing before they have started."""
    while process.poll() is None:
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_AGAIN_S)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Refuse to train where another process does: the two would write into each other's checkpoints."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RuntimeError(f"another process is training into {lock.parent}: wait for it, or end it") from None
        yield


@contextmanager
def _own_signals() -> Iterator[None]:
    """Give this process its signal handlers back, which the agent replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in AGENT_SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
