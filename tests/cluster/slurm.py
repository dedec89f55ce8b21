"""A Slurm of a test's own: a controller on the head, two nodes, and commands as a user on the head gives them.

`munge` and Slurm are Debian's; their configuration, keys, sockets and logs are in the directory of the machines, and
nothing of an installed Slurm is touched.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.cluster.machines import HEAD, Machines, wait_for
from tests.project import REPOSITORY

NODES = ("n1", "n2")
CONF = """ClusterName=test
SlurmctldHost={head}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={directory}/munge/socket,cred_expire=5
CryptoType=crypto/munge
StateSaveLocation={directory}/state
SlurmdSpoolDir={directory}/spool_%n
SlurmctldPidFile={directory}/slurmctld.pid
SlurmdPidFile={directory}/slurmd_%n.pid
SlurmctldLogFile={directory}/log/slurmctld
SlurmdLogFile={directory}/log/slurmd_%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmdTimeout=20
KillWait={kill_wait_s}
SchedulerParameters=sched_interval=5,batch_sched_delay=1
{nodes}
PartitionName=train Nodes=ALL Default=YES State=UP MaxTime=INFINITE PriorityTier=1 GraceTime={kill_wait_s}
PartitionName=urgent Nodes=ALL State=UP MaxTime=INFINITE PriorityTier=2 PreemptMode=OFF
"""
KILL_WAIT_S = 90
"""Between SIGTERM and SIGKILL; Slurm's own value of 30 is short where the machine is busy."""


class Slurm:
    """A Slurm that runs on `machines`."""

    def __init__(self, machines: Machines) -> None:
        self.machines = machines
        self.directory = machines.directory
        self.conf = self.directory / "slurm.conf"
        for name in ("state", "log", "munge"):
            (self.directory / name).mkdir()
        nodes = "\n".join(
            f"NodeName={name} NodeAddr={machines.addresses[name]} CPUs=1 RealMemory=4000 State=UNKNOWN"
            for name in NODES
        )
        self.conf.write_text(
            CONF.format(head=HEAD, directory=self.directory, nodes=nodes, kill_wait_s=KILL_WAIT_S), encoding="utf-8"
        )
        self._start_munge()
        self._start("slurmctld", "-D", on=HEAD)
        for name in NODES:
            self.start_node(name)
        self.wait_until_idle()

    def wait_until_idle(self) -> None:
        """Wait until both nodes are up and without a job."""
        idle = ("sinfo", "--noheader", "--states=idle", "--partition=train", "--format=%D")
        wait_for(lambda: self.call(*idle, check=False).strip() == str(len(NODES)), "two idle nodes",
                 lambda: self.call("sinfo", check=False))  # fmt: skip

    def start_node(self, name: str) -> None:
        """Start a node's daemon, and the node where it doesn't run."""
        if name not in self.machines.running:
            self.machines.start(name)
        self._start("slurmd", "-D", "-N", name, on=name)

    def call(self, *command: str, check: bool = True) -> str:
        """What a command of the user prints, standard error included."""
        done = subprocess.run(
            self.machines.running[HEAD].on(command),
            env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}"
        return done.stdout

    def environment(self) -> dict[str, str]:
        """Of commands: this Slurm, this Python, this project."""
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        here = {
            "SLURM_CONF": str(self.conf),
            "PATH": path,
            "PYTHONPATH": str(REPOSITORY),
            "PYTHONUNBUFFERED": "",
            "OMP_NUM_THREADS": "1",
            "VIRTUAL_ENV": sys.prefix,
        }
        return {**os.environ, **here}

    def submit(self, directory: Path, *arguments: str) -> str:
        """`sbatch ARGUMENTS` in a directory; the id of the job."""
        return self.call("sbatch", "--parsable", f"--chdir={directory}", *arguments).strip()

    def job(self, job: str) -> dict[str, str]:
        """What `scontrol` says of a job, such as `JobState`, `Reason`, `Restarts`, `ExitCode`."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.call("scontrol", "show", "job", job)))

    def _start_munge(self) -> None:
        place = self.directory / "munge"
        (place / "key").write_bytes(os.urandom(128))
        (place / "key").chmod(0o400)
        for path in (place, place / "key"):
            shutil.chown(path, "munge", "munge")
        files = [f"--{name}={place / name}" for name in ("socket",)]
        files += [f"--{name}-file={place / name}" for name in ("key", "pid", "log", "seed")]
        # inside of the head, so that it ends with it
        self.machines.running[HEAD].start(
            ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--foreground", *files],
            self.directory / "log" / "munged",
        )
        wait_for((place / "socket").exists, "munged")

    def _start(self, daemon: str, *arguments: str, on: str) -> None:
        command = ["env", f"SLURM_CONF={self.conf}", daemon, *arguments, "-f", str(self.conf)]
        self.machines.running[on].start(command, self.directory / "log" / f"{daemon}_{on}.out")
