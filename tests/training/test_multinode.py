"""Commands for several nodes, and the address at which they meet. `test_node` runs one."""

import json
import re
import shlex
import socket
import sys
from pathlib import Path

import pytest

from clip4vla.training.multinode import (
    NodesCommand,
    address_of,
    first_host,
    hostfile_command,
    read_hostfile,
    several_nodes,
    slurm_command,
)
from clip4vla.training.network import LOOPBACK, interface_towards
from clip4vla.utils.variables import HOSTFILE

SPEC = Path("/shared/checkpoints/pretraining/spec.json")
SLURM = {"SLURM_JOB_ID": "5", "SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "gpu[03-06]"}
ADDRESSES = {"gpu03": "203.0.113.3", "here": "127.0.1.1"}


@pytest.fixture(autouse=True)
def _names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that the cluster knows."""

    def look_up(host: str) -> str:
        if host not in ADDRESSES:
            raise socket.gaierror("Name or service not known")
        return ADDRESSES[host]

    monkeypatch.setattr(socket, "gethostbyname", look_up)


def test_slurm_starts_one_process_a_node_and_all_meet_at_the_first() -> None:
    command = slurm_command(SPEC, nodes=4, ranks_per_node=8, address="203.0.113.3")
    module = command.index("clip4vla.training.node")
    assert command[0] == "srun"
    assert {"--nodes=4", "--ntasks=4", "--ntasks-per-node=1", "--kill-on-bad-exit=1"} <= set(command[:module])
    assert command[module + 1 :] == [str(SPEC), "--ranks=8", "--nodes=4", "--address=203.0.113.3", "--port=29500"]


def test_pdsh_starts_one_process_a_host_with_its_slots_and_what_it_needs_of_the_environment(tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    environment = {"MLFLOW_TRACKING_PASSWORD": "horse", "PYTHONPATH": "/code", "HOME": "/root"}
    nodes = hostfile_command(spec, {"gpu03": 8, "gpu04": 4}, "203.0.113.3", environment)
    for command in (nodes.command, nodes.stop):
        assert command[0] == "pdsh"
        assert command[command.index("-w") + 1] == "gpu03,gpu04"
    words = shlex.split(nodes.command[-1])
    assert words[:5] == ["cd", str(Path.cwd()), "&&", "exec", "env"]
    assert "PYTHONPATH=/code" in words
    assert words[words.index("clip4vla.training.node") + 1] == str(spec)
    assert words[words.index("--ranks") :] == ["--ranks", "8", "4", "--index=%n"]
    assert "horse" not in nodes.command[-1]
    passed = tmp_path / "environment.json"
    assert f"--environment={passed}" in words
    assert json.loads(passed.read_text()) == {"MLFLOW_TRACKING_PASSWORD": "horse"}
    assert passed.stat().st_mode & 0o077 == 0


def test_only_the_nodes_of_the_same_spec_are_stopped(tmp_path: Path) -> None:
    nodes, others = (
        hostfile_command(tmp_path / name, {"gpu03": 8}, "203.0.113.3", {}) for name in ("spec.json", "spec_json")
    )
    *pkill, pattern = shlex.split(nodes.stop[-1])
    assert pkill == ["pkill", "-TERM", "-f"]
    agent, other = (launcher.command[-1][launcher.command[-1].index(sys.executable) :] for launcher in (nodes, others))
    assert re.search(pattern, agent)
    for line in (other, " ".join(nodes.command), " ".join(nodes.stop)):
        assert not re.search(pattern, line)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("gpu01\n", "'gpu01' is not a line like 'node1 slots=8'"),
        ("gpu01 slots=0\n", "'gpu01 slots=0' is not a line like"),
        ("gpu01 slots=1\ngpu01 slots=1\n", "'gpu01 slots=1' is not a line like 'node1 slots=8' about another host"),
        ("# none\n", "names no host"),
    ],
)
def test_what_is_no_hostfile_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "hosts").write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_hostfile(tmp_path / "hosts")


def test_the_environment_decides_which_launcher_starts_the_ranks(tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("# two nodes\ngpu03 slots=8\ngpu04 slots=4  # half\n\n")
    spec = tmp_path / "spec.json"
    assert several_nodes(SPEC, 8, {}) is None
    assert several_nodes(SPEC, 8, SLURM | {"SLURM_JOB_NUM_NODES": "1"}) is None
    command = slurm_command(SPEC, 4, 8, "203.0.113.3")
    assert several_nodes(SPEC, 8, SLURM) == NodesCommand(command, ["scancel", "--quiet", "--signal=TERM", "5"])
    expected = hostfile_command(spec, {"gpu03": 8, "gpu04": 4}, "203.0.113.3", {})
    assert several_nodes(spec, 8, SLURM | {HOSTFILE: str(hostfile)}) == expected
    with pytest.raises(ValueError, match=r"CLIP4VLA_HOSTFILE is .*missing, which is no file"):
        several_nodes(SPEC, 8, {HOSTFILE: str(tmp_path / "missing")})


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("gpu01", "gpu01"),
        ("gpu01,gpu02", "gpu01"),
        ("gpu[01-04,07],login1", "gpu01"),
        ("gpu[7]", "gpu7"),
        ("a-b-[003,005]", "a-b-003"),
    ],
)
def test_first_host_of_a_nodelist(nodelist: str, host: str) -> None:
    assert first_host(nodelist) == host


def test_a_nodelist_without_nodes_is_refused() -> None:
    with pytest.raises(ValueError, match="SLURM_JOB_NODELIST is '', which names no node"):
        first_host("")


def test_where_the_first_nodes_name_leads_to_itself_its_interface_must_be_named() -> None:
    with pytest.raises(ValueError, match=r"here leads to 127\.0\.1\.1 here, which .* set GLOO_SOCKET_IFNAME to the"):
        address_of("here", {})
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        assert address_of("here", {variable: interface_towards(LOOPBACK)}) == LOOPBACK
    assert address_of("gpu03", {"GLOO_SOCKET_IFNAME": "none0"}) == "203.0.113.3"


def test_a_first_node_without_an_address_is_named() -> None:
    with pytest.raises(ValueError, match="the first node's name, gpu9, leads to no address: Name or service not known"):
        address_of("gpu9", {})
