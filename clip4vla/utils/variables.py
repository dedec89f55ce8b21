"""The environment variables of the project, in one list, by which one that is mistyped is found.

In: an environment. Out: a sentence for each variable of the project's prefix that nothing reads. They are warnings, not
errors: people may have variables of their own with this prefix.
"""

import os
import sys
from collections.abc import Iterator, Mapping
from difflib import get_close_matches

PREFIX = "CLIP4VLA_"
HOSTFILE = f"{PREFIX}HOSTFILE"
SBATCH = f"{PREFIX}SBATCH"
NOTIFY_URL = f"{PREFIX}NOTIFY_URL"
METRICS_URL = f"{PREFIX}METRICS_URL"
SERVING = (
    *("MAX_BYTES", "MAX_CHARACTERS", "MAX_DECODE_S", "MAX_DURATION_S", "MAX_PIXELS", "MAX_ROWS"),
    *("MEDIA_ROOT", "MEMORY_BYTES", "METRICS_PORT", "READERS", "WAIT_S"),
)
"""What follows the prefix in the names of `inference.limits.ServingLimits`."""
VARIABLES = tuple(sorted((HOSTFILE, SBATCH, NOTIFY_URL, METRICS_URL, *(PREFIX + name for name in SERVING))))
"""All that the project reads."""


def unread(environment: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable that looks like one of `VARIABLES` and is none; values are not shown."""
    for name in sorted(environment):
        if not name.upper().startswith(PREFIX) or name in VARIABLES:
            continue
        near = get_close_matches(name.upper().removeprefix(PREFIX), [v.removeprefix(PREFIX) for v in VARIABLES], 1)
        yield f"nothing reads the variable {name}" + (f": did you mean {PREFIX}{near[0]}?" if near else "")


def warn_of_unread() -> None:
    """Print these sentences about the environment of this process to standard error."""
    for sentence in unread(os.environ):
        print(f"clip4vla: {sentence}", file=sys.stderr)
