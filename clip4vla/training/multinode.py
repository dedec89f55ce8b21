"""The same training on several nodes: the command that starts its ranks there, by Slurm or by DeepSpeed's hostfile.

In: a spec file on a disk that all nodes see, and the environment. Out: a command, or None on one node. Nothing else
changes: `launch` calls this first, so that `dvc repro pretrain` uses the nodes of the allocation.

- Inside a Slurm allocation of more than one node, `srun` starts torchrun's agent once a node (see `node`), and the
  agents meet at the first node: `sbatch --nodes=4 --gpus-per-node=8 --wrap "dvc repro pretrain"`.
- With CLIP4VLA_HOSTFILE naming a hostfile (lines such as `node1 slots=8`), DeepSpeed's launcher starts the ranks over
  ssh (pdsh), with this directory as working directory and the same Python on every node.

Clips, spec and checkpoints must lie on the shared disk. Ranks of several nodes outlive a launcher that is killed with
-9; `scancel`, or ending the ranks on the nodes, is then up to you.
"""

import ipaddress
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from clip4vla.training.network import INTERFACE_VARIABLES, address_of_interface
from clip4vla.training.node import RANK_MODULE

HOSTFILE = "CLIP4VLA_HOSTFILE"
NODE_MODULE = "clip4vla.training.node"
PORT = 29500
"""Where the nodes meet on the first one."""


def several_nodes(spec_file: Path, ranks_per_node: int, environment: Mapping[str, str]) -> list[str] | None:
    """The command that trains `spec_file` on the nodes that `environment` names, None where it names one or none.

    Raises:
        ValueError: the hostfile isn't there, or the address of the first node is unknown.
    """
    hostfile = environment.get(HOSTFILE)
    if hostfile:
        if not Path(hostfile).is_file():
            raise ValueError(f"{HOSTFILE} is {hostfile}, which is no file")
        return hostfile_command(spec_file, Path(hostfile))
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes > 1:
        address = address_of(first_host(environment["SLURM_JOB_NODELIST"]), environment)
        return slurm_command(spec_file, nodes, ranks_per_node, address)
    return None


def hostfile_command(spec_file: Path, hostfile: Path) -> list[str]:
    """DeepSpeed's launcher on the hosts and slots of `hostfile`; a rank takes no argument but the spec."""
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)),
        *("--no_local_rank", "--module", RANK_MODULE, str(spec_file)),
    ]


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
