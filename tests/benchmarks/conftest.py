"""The published numbers in the tests' own data, laid out as `benchmarks.parity` reads them."""

from tests.model.conftest import pretrained_state

__all__ = ["pretrained_state"]
