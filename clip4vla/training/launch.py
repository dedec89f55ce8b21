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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from clip4vla.config import TrainerConfig
from clip4vla.training.checkpoints import newest_checkpoint
from clip4vla.training.multinode import several_nodes
from clip4vla.training.node import AGENT_SIGNALS, Node, run_ranks
from clip4vla.training.spec import TrainSpec


def ranks_here(trainer: TrainerConfig) -> int:
    """Processes of a training on this node."""
    return trainer.ranks or torch.cuda.device_count() or trainer.cpu_ranks


def launch(spec: TrainSpec) -> None:
    """Train `spec` in processes of its own and wait for them. Rank 0 prints here.

    Raises:
        ValueError: the spec doesn't fit the data or this machine, or a loss isn't finite (known of ranks here).
        RuntimeError: the training failed, or another process is at it; the message names the rank that failed first
            and its last words. A checkpoint may be there, from which the same spec goes on.
        SystemExit: this process was asked to stop; a checkpoint is there if training had begun.
    """
    spec.checkpoints.mkdir(parents=True, exist_ok=True)
    spec_file = spec.checkpoints / "spec.json"
    with _alone(spec.checkpoints / "lock"), _own_signals():
        spec.write(spec_file)
        ranks = ranks_here(spec.trainer)
        command = several_nodes(spec_file, ranks, os.environ)
        if command is None:
            run_ranks(spec_file, ranks, Node())
        else:
            _run_there(command)


def launch_with_retries(spec: TrainSpec) -> None:
    """Train `spec`; after a failure, resume from its last checkpoint if the failed attempt has left a new one.

    A failure that repeats at the same place, or before there is a checkpoint, is raised.

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


def _steps_kept(spec: TrainSpec) -> int:
    """Steps behind the newest checkpoint of the spec."""
    notes = newest_checkpoint(spec.checkpoints / spec.fingerprint())
    return notes.step if notes else 0


def _run_there(command: list[str]) -> None:
    """Run the launcher of several nodes, which passes on the signals that this process gets."""
    early: list[int] = []
    process: subprocess.Popen[bytes] | None = None

    def pass_on(number: int, _: FrameType | None) -> None:
        if process is None:
            early.append(number)
        else:
            process.send_signal(number)

    if threading.current_thread() is threading.main_thread():
        for number in AGENT_SIGNALS:
            signal.signal(number, pass_on)
    process = subprocess.Popen(command)
    for missed in early:
        process.send_signal(missed)
    code = process.wait()
    if code:
        raise RuntimeError(f"the training failed: {command[0]} ended with status {code}; its output says which rank")


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
