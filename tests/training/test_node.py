"""Trainings on one node, which nobody else can reach, and on two."""

import base64
import os
import pickle
import signal
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import TCPStore
from torch.distributed.elastic import multiprocessing

from benchmarks.clips import write_clips
from clip4vla.training import multinode
from clip4vla.training.checkpoints import newest_checkpoint
from clip4vla.training.launch import launch
from clip4vla.training.network import LOOPBACK
from clip4vla.training.node import AGENT_SIGNALS
from clip4vla.training.spec import read_run
from tests.servers import free_port, listeners
from tests.training.small_training import Training, make_spec

pytestmark = pytest.mark.slow

SRUN = """#!/bin/sh
# runs the command of both nodes on this machine
while case "$1" in --*) true;; *) false;; esac; do shift; done
for node in 0 1; do SLURM_NODEID=$node "$@" & done
wait
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    write_clips(tmp_path / "train.lance")
    return tmp_path


class Intruder:
    """Makes a directory where it is unpickled."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.directory),)


def overwrite_store(port: int, value: str) -> int:
    """Write `value` to every key that torchrun's agent has in its store; the number of keys.

    Those of the ranks are left alone, so that the training goes on.
    """
    store = TCPStore(LOOPBACK, port, is_master=False, timeout=timedelta(seconds=5))
    keys = [key for key in store.list_keys() if "elastic" in key or "rendezvous" in key]
    for key in keys:
        store.set(key, value)
    return len(keys)


def test_a_training_on_one_node_listens_on_loopback_and_unpickles_nothing_of_others(project: Path) -> None:
    training = Training(make_spec(project, "training", steps=12))
    assert training.until(1), training.end()
    found = listeners(training.process.pid)
    assert found
    assert {address for address, _ in found} == {LOOPBACK}
    intruder = base64.b64encode(pickle.dumps(Intruder(project / "unpickled"))).decode()
    [(_, port)] = listeners(training.process.pid, descendants=False)
    assert overwrite_store(port, intruder)
    status, errors = training.end()
    assert status == 0, errors
    assert not (project / "unpickled").exists()


def test_two_nodes_of_slurm_train_together(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    srun = project / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    variables = {
        "SLURM_JOB_ID": "5",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "localhost",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    for name, value in {**variables, "PATH": f"{srun.parent}:/usr/bin:/bin"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(multinode, "PORT", free_port())
    spec = make_spec(project, "nodes", steps=2, ranks=1)
    launch(spec)
    assert read_run(spec.out)["world_size"] == 2


def test_signals_that_come_together_stop_a_training_that_goes_on_afterwards(project: Path) -> None:
    spec = make_spec(project, "signalled", steps=12)
    training = Training(spec)
    assert training.until(4), training.end()
    for _ in range(20):
        training.process.send_signal(signal.SIGTERM)
    status, errors = training.end()
    assert status == 128 + signal.SIGTERM, errors
    stopped = newest_checkpoint(spec.checkpoints / spec.fingerprint())
    assert stopped is not None
    assert stopped.step >= 4
    again = Training(spec)
    assert again.until(12)
    assert again.end()[0] == 0
    assert again.steps[0] == stopped.step + 1


def test_a_second_signal_does_not_interrupt_the_end_of_the_ranks() -> None:
    before = {number: signal.getsignal(number) for number in AGENT_SIGNALS}
    try:
        with pytest.raises(multiprocessing.api.SignalException):
            multiprocessing.api._terminate_process_handler(signal.SIGTERM, None)
        assert {signal.getsignal(number) for number in AGENT_SIGNALS} == {signal.SIG_IGN}
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
