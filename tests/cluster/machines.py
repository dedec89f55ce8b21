"""Machines of a test's own on this one: each has its network, name, processes and view of /etc/hosts.

A machine is a set of Linux namespaces that its first process holds: when that is killed, so is all that runs on the
machine, as in a power failure. They share the file system, as the nodes of a cluster do. Their network is a bridge on
the first machine, the head; nothing leads from it to the outside. Needs root.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import Popen
from typing import TypeVar

import psutil

T = TypeVar("T")
NETWORK = "10.77.0"
HEAD = "head"
PATIENCE_S = 240.0
NAMESPACES = ("--net", "--uts", "--mount", "--pid")
FIRST_PROCESS = """
hostname {name}
mount --bind {hosts} /etc/hosts
ip link set lo up
until ip link show eth0 > /dev/null 2>&1; do sleep 0.05; done
ip addr add {address}/24 dev eth0
ip link set eth0 up
echo up > {up}
while :; do sleep 3600 & wait $!; done
"""
"""It waits for its children, so that no zombies stay of processes whose parents have ended."""


@dataclass
class Machine:
    """One machine that runs."""

    name: str
    address: str
    holder: "Popen[bytes]"
    """Process outside, whose child is the first process of the machine."""
    started: list["Popen[bytes]"] = field(default_factory=list)

    @property
    def pid(self) -> int:
        """Id, outside, of the first process of the machine."""
        return psutil.Process(self.holder.pid).children()[0].pid

    def on(self, command: Sequence[str], directory: Path = Path("/")) -> list[str]:
        """The command line that runs `command` there, in a directory."""
        return ["nsenter", "--target", str(self.pid), *NAMESPACES, f"--wdns={directory}", *command]

    def start(self, command: Sequence[str], log: Path) -> "Popen[bytes]":
        """Start a daemon there."""
        with log.open("ab") as file:
            process = Popen(self.on(command), stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self.started.append(process)
        return process

    def processes(self) -> list[psutil.Process]:
        """All living processes there."""
        own = _pid_namespace(self.pid)
        found = []
        for process in psutil.process_iter(["status"]):
            with suppress(OSError, psutil.NoSuchProcess):
                if _pid_namespace(process.pid) == own:
                    found += [process] if process.info["status"] != psutil.STATUS_ZOMBIE else []
        return found

    def kill(self) -> None:
        """Cut the power."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        for process in (self.holder, *self.started):
            process.wait(PATIENCE_S)


def _pid_namespace(pid: int) -> int:
    return Path(f"/proc/{pid}/ns/pid").stat().st_ino


class Machines:
    """A head and the nodes `names`, which reach each other by name; started one by one.

    Args:
        directory: for their files.
        names: of all machines but the head.
    """

    def __init__(self, directory: Path, names: Sequence[str]) -> None:
        self.directory = directory
        self.addresses = {name: f"{NETWORK}.{number}" for number, name in enumerate((HEAD, *names), 1)}
        self.running: dict[str, Machine] = {}
        self._hosts = directory / "hosts"
        lines = [f"{address} {name}\n" for name, address in self.addresses.items()]
        self._hosts.write_text("".join(["127.0.0.1 localhost\n", *lines]))

    def start(self, name: str) -> Machine:
        """Start a machine; the head comes first."""
        up = self.directory / f"{name}.up"
        up.unlink(missing_ok=True)
        script = FIRST_PROCESS.format(name=name, hosts=self._hosts, address=self.addresses[name], up=up)
        with (self.directory / f"{name}.log").open("ab") as log:
            unshare = ["unshare", *NAMESPACES, "--fork", "--kill-child", "--mount-proc", "sh", "-ec", script]
            # it ends with the tests, also when they are killed
            holder = Popen(["setpriv", "--pdeathsig=KILL", *unshare], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        machine = Machine(name, self.addresses[name], holder)
        wait_for(lambda: psutil.Process(holder.pid).children(), f"{name} to start")
        self.running[name] = machine
        self._plug_in(machine)
        wait_for(up.is_file, f"{name} to be up")
        return machine

    def kill(self, name: str) -> None:
        """Kill a machine with all that runs there."""
        self.running.pop(name).kill()

    def close(self) -> None:
        """Kill all."""
        for name in reversed(list(self.running)):
            self.kill(name)

    def _plug_in(self, machine: Machine) -> None:
        """Connect a machine to the bridge."""
        head = self.running[HEAD]

        def ip_link(arguments: str) -> None:
            # only the network is the head's: the id of the other machine is the one outside
            command = ["nsenter", "--target", str(head.pid), "--net", "ip", "link", *arguments.split()]
            subprocess.run(command, check=True)

        if machine is head:
            ip_link("add bridge type bridge")
            ip_link("set bridge up")
        ip_link(f"add {machine.name} type veth peer name eth0 netns {machine.pid}")
        ip_link(f"set {machine.name} master bridge up")


def wait_for(condition: Callable[[], T], what: str, explain: Callable[[], str] = lambda: "") -> T:
    """Wait until `condition()` is true, and return what it is; `explain` says what is seen where it doesn't get so."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {PATIENCE_S:g} s for {what}\n{explain()}"
        time.sleep(0.1)
    return found
