"""A Prefect of its own for the tests of flows."""

from collections.abc import Iterator

import pytest
from prefect.testing.utilities import prefect_test_harness


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """One ephemeral server for the session."""
    with prefect_test_harness(server_startup_timeout=300):
        yield
