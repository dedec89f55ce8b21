"""A training on the nodes of a hostfile, which DeepSpeed's launcher starts by pdsh and ssh."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from clip4vla.training.checkpoints import newest_checkpoint
from clip4vla.training.spec import TrainSpec, read_run
from clip4vla.training.worker import STOPPED
from tests.cluster.machines import HEAD, Machines, wait_for
from tests.cluster.slurm import NODES
from tests.cluster.trainings import assert_same, command, make_spec, train_here
from tests.project import REPOSITORY

pytestmark = pytest.mark.cluster

STEPS = 16
SSH = """#!/bin/sh
exec /usr/bin/ssh -F none -i {key} -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR "$@"
"""
SSHD = ("-D", "-e", "-f", "/dev/null", "-o", "StrictModes=no", "-o", "PermitRootLogin=yes")


@pytest.fixture(scope="module")
def ssh(machines: Machines) -> Path:
    """A directory with an ssh that logs in to both nodes, whose sshd knows one key."""
    directory = machines.directory / "ssh"
    directory.mkdir()
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True)
    program = directory / "ssh"
    program.write_text(SSH.format(key=directory / "key"))
    program.chmod(0o755)
    Path("/run/sshd").mkdir(exist_ok=True)
    daemon = shutil.which("sshd")
    assert daemon is not None  # sshd insists on an absolute path
    keys = ("-h", str(directory / "host"), "-o", f"AuthorizedKeysFile={directory}/key.pub")
    for name in NODES:
        if name not in machines.running:
            machines.start(name)
        machines.running[name].start([daemon, *SSHD, *keys], directory / f"{name}.log")
        at_head = machines.running[HEAD].on([str(program), name, "true"])
        wait_for(lambda at=at_head: subprocess.run(at, check=False).returncode == 0, f"sshd on {name}")  # type: ignore[misc]
    return directory


def start(machines: Machines, ssh: Path, spec: TrainSpec) -> "subprocess.Popen[str]":
    """A training on both nodes, from the first of them."""
    hostfile = spec.root / "hostfile"
    hostfile.write_text("".join(f"{name} slots=1\n" for name in NODES))
    here = {"CLIP4VLA_HOSTFILE": str(hostfile), "PATH": f"{ssh}:{os.environ['PATH']}", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        machines.running[NODES[0]].on(command(spec), spec.root), env={**os.environ, **here, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def agents(machines: Machines) -> list[list[str]]:
    """Command lines of what a training runs on the nodes."""
    found = [process for name in NODES for process in machines.running[name].processes()]
    return [line for process in found if "clip4vla.training." in " ".join(line := process.cmdline())]


def test_the_nodes_of_a_hostfile_stop_with_a_checkpoint_and_give_the_weights_of_two_ranks_here(
    machines: Machines, ssh: Path, tmp_path: Path
) -> None:
    spec = make_spec(tmp_path, STEPS)
    training = start(machines, ssh, spec)
    assert training.stdout is not None
    for line in training.stdout:
        if f"step  4/{STEPS}" in line:
            break
    [launcher] = [process for process in machines.running[NODES[0]].processes()
                  if process.cmdline() == command(spec)]  # fmt: skip
    launcher.terminate()
    words = training.communicate()[0]
    assert training.returncode == STOPPED, words
    kept = newest_checkpoint(spec.checkpoints / spec.fingerprint())
    assert kept is not None
    assert kept.step >= 4
    assert f"because it was asked to; started again, it goes on from the checkpoint of step {kept.step}" in words
    assert "Traceback" not in words
    assert not agents(machines)
    again = start(machines, ssh, spec)
    words = again.communicate()[0]
    assert again.returncode == 0, words
    assert f"step {kept.step + 1:2}/{STEPS}" in words
    assert read_run(spec.out)["world_size"] == 2
    here = train_here(make_spec(tmp_path, STEPS, ranks=2), "here")
    assert_same(spec, here)


def test_a_rank_that_is_killed_is_named(machines: Machines, ssh: Path, tmp_path: Path) -> None:
    training = start(machines, ssh, make_spec(tmp_path, STEPS))
    assert training.stdout is not None
    for line in training.stdout:
        if f"step  2/{STEPS}" in line:
            break
    for process in machines.running[NODES[1]].processes():
        if "clip4vla.training.worker" in process.cmdline():
            process.kill()
    words = training.communicate()[0]
    assert training.returncode == 1, words
    assert "clip4vla: node " in words
    wait_for(lambda: not agents(machines), "the end of the other rank")
