"""The same training on several nodes: the command that starts its ranks there, by Slurm or by DeepSpeed's hostfile.

In: a spec file on a disk that all nodes see, and the environment. Out: a command, or None on one node. Nothing else
changes: `launch` calls this first, so that `dvc repro pretrain` uses the nodes of the allocation.

- Inside a Slurm allocation of more than one node, `srun` starts torchrun once a node, and the torchruns meet at the
  first node: `sbatch --nodes=4 --gpus-per-node=8 --wrap "dvc repro pretrain"`.
- With CLIP4VLA_HOSTFILE naming a hostfile (lines such as `node1 slots=8`), DeepSpeed's launcher starts the ranks over
  ssh (pdsh), with this directory as working directory and the same Python on every node.

Clips, spec and checkpoints must lie on the shared disk. Ranks of several nodes outlive a launcher that is killed with
-9; `scancel`, or ending the ranks on the nodes, is then up to you.
"""

import re
import sys
from collections.abc import Mapping
from pathlib import Path

HOSTFILE = "CLIP4VLA_HOSTFILE"
RANK_MODULE = "clip4vla.training.worker"
PORT = 29500
"""Where the torchruns meet on the first node."""


def several_nodes(spec_file: Path, ranks_per_node: int, environment: Mapping[str, str]) -> list[str] | None:
    """The command that trains `spec_file` on the nodes that `environment` names, None where it names one or none.

    Raises:
        ValueError: the hostfile isn't there.
    """
    hostfile = environment.get(HOSTFILE)
    if hostfile:
        if not Path(hostfile).is_file():
            raise ValueError(f"{HOSTFILE} is {hostfile}, which is no file")
        return hostfile_command(spec_file, Path(hostfile))
    nodes = int(environment.get("SLURM_JOB_NUM_NODES", "1"))
    if nodes > 1:
        head = first_host(environment["SLURM_JOB_NODELIST"])
        return slurm_command(spec_file, nodes, ranks_per_node, head, environment["SLURM_JOB_ID"])
    return None


def hostfile_command(spec_file: Path, hostfile: Path) -> list[str]:
    """DeepSpeed's launcher on the hosts and slots of `hostfile`; a rank takes no argument but the spec."""
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", str(hostfile)),
        *("--no_local_rank", "--module", RANK_MODULE, str(spec_file)),
    ]


def slurm_command(spec_file: Path, nodes: int, ranks_per_node: int, head: str, run_id: str) -> list[str]:
    """One torchrun a node, which meet at `head`; when one fails, Slurm ends the others."""
    return [
        *("srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1"),
        *(sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={ranks_per_node}"),
        *(f"--rdzv-id={run_id}", "--rdzv-backend=c10d", f"--rdzv-endpoint={head}:{PORT}"),
        *("-m", RANK_MODULE, str(spec_file)),
    ]


def first_host(nodelist: str) -> str:
    """The first of Slurm's nodes: `gpu01` of `gpu[01-04,07],login1`."""
    found = re.match(r"([^\[,]+)(?:\[([^\],-]+))?", nodelist)
    if found is None:
        raise ValueError(f"SLURM_JOB_NODELIST is {nodelist!r}, which names no node")
    return found[1] + (found[2] or "")
