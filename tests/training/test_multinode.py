"""Commands for several nodes, read back by the launchers' own parsers."""

from pathlib import Path

import pytest
from torch.distributed.run import parse_args

from clip4vla.training.multinode import HOSTFILE, first_host, hostfile_command, several_nodes, slurm_command

SPEC = Path("/shared/checkpoints/pretraining/spec.json")
SLURM = {"SLURM_JOB_NUM_NODES": "4", "SLURM_JOB_NODELIST": "gpu[03-06]", "SLURM_JOB_ID": "4711"}


def test_slurm_starts_one_torchrun_a_node_and_all_meet_at_the_first() -> None:
    command = slurm_command(SPEC, nodes=4, ranks_per_node=8, head="gpu03", run_id="4711")
    torchrun = command.index("torch.distributed.run")
    assert command[:torchrun][0] == "srun"
    assert {"--nodes=4", "--ntasks=4", "--ntasks-per-node=1", "--kill-on-bad-exit=1"} <= set(command[:torchrun])
    parsed = parse_args(command[torchrun + 1 :])
    assert (parsed.nnodes, parsed.nproc_per_node, parsed.rdzv_backend) == ("4", "8", "c10d")
    assert (parsed.rdzv_endpoint, parsed.rdzv_id) == ("gpu03:29500", "4711")
    assert (parsed.module, parsed.training_script, parsed.training_script_args) == (
        True,
        "clip4vla.training.worker",
        [str(SPEC)],
    )


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
    assert several_nodes(SPEC, 8, SLURM) == slurm_command(SPEC, 4, 8, "gpu03", "4711")
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
