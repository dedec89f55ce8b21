"""A Prefect of its own for the tests of flows."""

import sys
from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness

from clip4vla.utils.supervise import supervised
from flows.serve import settings
from tests.project import REPOSITORY, environment
from tests.servers import free_port, serving


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """One ephemeral server for the session."""
    with prefect_test_harness(server_startup_timeout=300):
        yield


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a command that asks a server like that of `make serve-flows`, whose services hurry."""
    home = tmp_path_factory.mktemp("prefect")
    (home / ".prefect").mkdir()
    variables = environment() | settings(home, free_port(), "clip4vla:correct-horse") | {
        "PYTHONPATH": str(REPOSITORY),
        "PREFECT_SERVER_SERVICES_DB_VACUUM_LOOP_SECONDS": "2",
        "PREFECT_SERVER_SERVICES_LATE_RUNS_AFTER_SECONDS": "1",
    }  # fmt: skip
    command = supervised([sys.executable, "-m", "prefect", "server", "start"])
    with serving(command, f"{variables['PREFECT_API_URL']}/health", variables, home / "log"):
        yield variables
