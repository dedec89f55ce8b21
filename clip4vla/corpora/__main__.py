"""`python -m clip4vla.corpora NAME --annotations DIR --media DIR --out DIR`: one corpus' manifest and rejects."""

import argparse
import sys
from pathlib import Path

from clip4vla.corpora.base import ADAPTERS, find_adapter
from clip4vla.corpora.manifest import write_manifest


def main() -> None:
    """Parse the command line, write the manifest, print accepted and rejected by reason."""
    parser = argparse.ArgumentParser(prog="python -m clip4vla.corpora", description=main.__doc__)
    parser.add_argument("name", choices=sorted(ADAPTERS), help="the corpus' adapter")
    parser.add_argument("--annotations", type=Path, required=True, help="directory of the published annotation files")
    parser.add_argument("--media", type=Path, required=True, help="directory of the media files")
    parser.add_argument("--out", type=Path, required=True, help="directory for manifest.parquet and rejects.parquet")
    parser.add_argument("--max-reject-fraction", type=float, help="fail when more is rejected, or everything")
    arguments = parser.parse_args()
    try:
        result = write_manifest(find_adapter(arguments.name)(arguments.annotations), arguments.media, arguments.out)
        if arguments.max_reject_fraction is not None:
            result.check(arguments.max_reject_fraction)
        print(f"{arguments.name}: {result.summary()}")
    except ValueError as error:
        sys.exit(f"{arguments.name}: {error}")


if __name__ == "__main__":
    main()
