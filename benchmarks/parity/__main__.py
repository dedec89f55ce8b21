"""Compare this code with a directory of numbers that the published code computed; print one JSON line.

    python -m benchmarks.parity DIRECTORY

The line has for each group the comparison that uses most of its tolerance: the distance there, what is allowed there,
and whether every comparison of the group holds; nulls where there was nothing to compare; and the files that are
missing. The exit status is 1 where one doesn't hold, where nothing can be compared, and where a file can't be read.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from benchmarks.parity import audio, checkpoint, features, inputs, losses, metrics, schedule
from benchmarks.parity.deviation import Deviation, summary
from benchmarks.parity.model import Models
from benchmarks.parity.reference import Reference
from clip4vla.utils.progress import track

GROUPS = tuple(
    chain.from_iterable(part.GROUPS for part in (audio, features, losses, metrics, schedule, inputs, checkpoint))
)


def main() -> None:
    """Compare this code with a directory of numbers that the published code computed; print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=main.__doc__)
    parser.add_argument("directory", type=Path, help="published numbers: audio_frontend.npz, model.npz and so on")
    directory = parser.parse_args().directory
    try:
        reference = Reference(directory)
        deviations = list(compare(reference))
    except ValueError as error:
        sys.exit(f"{parser.prog}: {error}")
    if all(one.group in checkpoint.GROUPS for one in deviations):
        sys.exit(f"{parser.prog}: {directory} holds no published number that this code computes too")
    groups = summary(deviations, GROUPS)
    beyond = [name for name, group in groups.items() if group["holds"] is False]
    line = {"reference": str(directory), "holds": not beyond, "missing": reference.missing, "groups": groups}
    print(json.dumps(line, allow_nan=False))
    if beyond:
        sys.exit(f"{parser.prog}: beyond the tolerance: {', '.join(beyond)}")


def compare(reference: Reference) -> Iterator[Deviation]:
    """Everything in the directory that our code computes too.

    Raises:
        ValueError: a file can't be read, or lacks what another array in it was computed from.
    """
    models = Models(reference.checkpoint, reference.model)
    parts = (
        audio.check(reference),
        features.check(models),
        losses.check(models, reference.names),
        metrics.check(reference.metrics, reference.facts.get("metrics", {})),
        schedule.check(reference.schedule),
        inputs.check_images(reference.images),
        inputs.check_text(reference.text),
        checkpoint.check(models, reference.full_size),
    )
    for part in track(parts, len(parts), "parts"):
        yield from part


if __name__ == "__main__":
    main()
