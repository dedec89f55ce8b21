"""Machines and a Slurm for the tests that are marked `cluster`."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.machines import HEAD, Machines
from tests.cluster.slurm import NODES, Slurm


@pytest.fixture(scope="session")
def machines() -> Iterator[Machines]:
    """A head and two nodes that run; short paths, since those of sockets must be."""
    directory = Path(tempfile.mkdtemp(prefix="cluster"))
    directory.chmod(0o755)
    found = Machines(directory, NODES)
    try:
        for name in (HEAD, *NODES):
            found.start(name)
        yield found
    finally:
        found.close()
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def slurm(machines: Machines) -> Slurm:
    """A Slurm with two idle nodes."""
    return Slurm(machines)
