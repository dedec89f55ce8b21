"""Commands for several nodes, and the address at which they meet. `test_node` runs one."""

import socket
from pathlib import Path

import pytest

from clip4vla.training.multinode import (
    HOSTFILE,
    address_of,
    first_host,
    hostfile_command,
    several_nodes,
    slurm_command,
)
from clip4vla.training.network import LOOPBACK, interface_towards

SPEC = Path("/shared/checkpoints/pretraining/spec.json")
SLURM = {"SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "gpu[03-06]"}
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


def test_the_ranks_of_a_hostfile_get_the_spec_as_their_only_argument() -> None:
    command = hostfile_command(SPEC, Path("/shared/hostfile"))
    assert command[command.index("--hostfile") + 1] == "/shared/hostfile"
    assert "--no_local_rank" in command  # or the spec would come second
    assert command[-3:] == ["--module", "clip4vla.training.worker", str(SPEC)]


def test_the_environment_decides_which_launcher_starts_the_ranks(tmp_path: Path) -> None:
    hostfile = tmp_path / "hostfile"
    hostfile.write_text("node1 slots=8\nnode2 slots=8\n")
    assert several_nodes(SPEC, 8, {}) is None
    assert several_nodes(SPEC, 8, SLURM | {"SLURM_JOB_NUM_NODES": "1"}) is None
    assert several_nodes(SPEC, 8, SLURM) == slurm_command(SPEC, 4, 8, "203.0.113.3")
    assert several_nodes(SPEC, 8, SLURM | {HOSTFILE: str(hostfile)}) == hostfile_command(SPEC, hostfile)
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
