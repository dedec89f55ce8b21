"""Imports of third parties without what they import for no use of ours."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def hidden(module: str) -> Iterator[None]:
    """An import of `module` within the block fails, unless it has been imported before.

    For a library that does without an optional module where there is none. Not for use while other threads import.
    """
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]  # Python's own sign of a module that can't be imported
    try:
        yield
    finally:
        del sys.modules[module]
