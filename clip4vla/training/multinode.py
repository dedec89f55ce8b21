"""The same training on several nodes: the command that starts its ranks there, by Slurm or by a hostfile.

In: a spec file on a disk that all nodes see, and the environment. Out: commands, or None on one node. Nothing else
changes: `launch` calls this first, so that `dvc repro pretrain` uses the nodes of the allocation.

- Inside a Slurm allocation of more than one node, `srun` starts torchrun's agent once a node (see `node`), and the
  agents meet at the first node: `sbatch --nodes=4 --gpus-per-node=8 slurm/train.sbatch`.
- With CLIP4VLA_HOSTFILE naming a hostfile (lines such as `node1 slots=8`, as DeepSpeed has them), pdsh starts the same
  agent over ssh, with this directory as working directory and the same Python on every node.

Clips, spec and checkpoints must lie on the shared disk. Ranks of several nodes outlive a launcher that is killed with
-9; `scancel`, or ending the ranks on the nodes, is then up to you.
"""

import ipaddress
import json
import os
import re
import shlex
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clip4vla.training.network import INTERFACE_VARIABLES, address_of_interface
from clip4vla.training.slurm import JOB_VARIABLE, stop_command
from clip4vla.utils.variables import HOSTFILE, PREFIX

NODE_MODULE = "clip4vla.training.node"
ENVIRONMENT_FILE = "environment.json"
"""Beside the spec: the variables that the nodes of a hostfile get, passwords among them."""
PASSED_ON = ("AWS_", PREFIX, "CUDA_", "GLOO_", "GOMP_", "MLFLOW_", "NCCL_", "OMP_", "TORCH")
"""Prefixes of these variables."""
PORT = 29500
"""Where the nodes meet on the first one."""


@dataclass(frozen=True)
class NodesCommand:
    """A launcher of several nodes."""

    command: list[str]
    """Runs until the training ends."""
    stop: list[str]
    """Asks the ranks of all nodes to stop."""


def several_nodes(spec_file: Path, ranks_per_node: int, environment: Mapping[str, str]) -> NodesCommand | None:
    """The launcher that trains `spec_file` on the nodes that `environment` names, None where it names one or none.

    Raises:
        ValueError: the hostfile isn't there, or is no hostfile, or the address of the first node is unknown.
    """
    hostfile = environment.get(HOSTFILE)
    if hostfile:
        hosts = read_hostfile(Path(hostfile))
        return hostfile_command(spec_file, hosts, address_of(next(iter(hosts)), environment), environment)
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes > 1:
        address = address_of(first_host(environment["SLURM_JOB_NODELIST"]), environment)
        command = slurm_command(spec_file, nodes, ranks_per_node, address)
        return NodesCommand(command, stop_command(environment[JOB_VARIABLE]))
    return None


def read_hostfile(path: Path) -> dict[str, int]:
    """Ranks by host, in the order of the file: a line for each, such as `node1 slots=8`; # begins a comment.

    Raises:
        ValueError: it isn't there, has another line, or names no host or one twice.
    """
    if not path.is_file():
        raise ValueError(f"{HOSTFILE} is {path}, which is no file")
    hosts: dict[str, int] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.partition("#")[0].strip()
        found = re.fullmatch(r"([\w.-]+)\s+slots=([1-9]\d*)", words)
        if words and (found is None or found[1] in hosts):
            raise ValueError(f"{path}: {line!r} is not a line like 'node1 slots=8' about another host")
        if found is not None:
            hosts[found[1]] = int(found[2])
    if not hosts:
        raise ValueError(f"{path} names no host")
    return hosts


def hostfile_command(
    spec_file: Path, hosts: Mapping[str, int], address: str, environment: Mapping[str, str]
) -> NodesCommand:
    """The ranks of each host, which meet at `address`, the first one's; what they need of `environment` is in a file.

    On a command line, every user of the hosts could read it.
    """
    passed = {name: value for name, value in environment.items() if name.startswith(PASSED_ON)}
    variables = spec_file.absolute().with_name(ENVIRONMENT_FILE)
    variables.unlink(missing_ok=True)
    with open(variables, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        json.dump(passed, file)
    agent = [sys.executable, "-m", NODE_MODULE, str(spec_file.absolute())]
    words = [
        *("env", f"PYTHONPATH={environment.get('PYTHONPATH', '')}", *agent),
        *(f"--nodes={len(hosts)}", f"--address={address}", f"--port={PORT}", f"--environment={variables}"),
        *("--ranks", *map(str, hosts.values())),
    ]
    pdsh = ["pdsh", "-S", "-N", "-R", "ssh", "-f", str(len(hosts)), "-w", ",".join(hosts)]
    # from the beginning: this node's pdsh and ssh have the same words later on their command lines
    pattern = f"^{re.escape(' '.join(agent))} "
    return NodesCommand(
        [*pdsh, f"cd {shlex.quote(str(Path.cwd()))} && exec {shlex.join(words)} --index=%n"],
        [*pdsh, f"pkill -TERM -f {shlex.quote(pattern)}"],
    )


def slurm_command(spec_file: Path, nodes: int, ranks_per_node: int, address: str) -> list[str]:
    """The ranks of each node, which meet at `address`, the first node's; when one fails, Slurm ends the others."""
    return [
        *("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"),
        *(sys.executable, "-m", NODE_MODULE, str(spec_file), f"--ranks={ranks_per_node}"),
        *(f"--nodes={nodes}", f"--address={address}", f"--port={PORT}"),
    ]


def address_of(host: str, environment: Mapping[str, str]) -> str:
    """IPv4 address of the first node in the cluster's network.

    On the host itself, its name may lead to the loopback address; the interface that `environment` names for gloo or
    NCCL then has it.

    Raises:
        ValueError: the name leads nowhere, or to the loopback address and no interface is named.
    """
    try:
        address = socket.gethostbyname(host)
    except OSError as error:
        raise ValueError(f"the first node's name, {host}, leads to no address: {error}") from None
    if not ipaddress.ip_address(address).is_loopback:
        return address
    interface = next((environment[name] for name in INTERFACE_VARIABLES if environment.get(name)), None)
    if interface is None:
        raise ValueError(
            f"{host} leads to {address} here, which the other nodes can't reach: set {INTERFACE_VARIABLES[0]} to the "
            "interface of the cluster's network"
        )
    return address_of_interface(interface)


def first_host(nodelist: str) -> str:
    """The first of Slurm's nodes: `gpu01` of `gpu[01-04,07],login1`."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodelist)
    if found is None:
        raise ValueError(f"SLURM_JOB_NODELIST is {nodelist!r}, which names no node")
    return found[1] + (found[2] or "")
