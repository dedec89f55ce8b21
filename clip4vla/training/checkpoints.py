"""The checkpoints of a training as files: which one to resume from, which ones to keep, conversion for other ranks.

In: the directory of the checkpoints of one training, `stepNNN/` each, in which DeepSpeed writes tensors. Out: the
`CheckpointMetadata` of the one to resume from. The metadata are written last and atomically, when the tensors are on
the disk, so that a save that was killed has none and is never resumed from. (DeepSpeed's own file `latest` may be left
empty by a kill.) They hold a hash of every other file: a checkpoint that was damaged since is passed over.
"""

import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from clip4vla.utils.files import sync_directory, write_json
from clip4vla.utils.hashing import hash_file

log = logging.getLogger(__name__)

METADATA_FILE = "metadata.json"
FILES = "files"
"""Key of the metadata: SHA-256 by the path of each file."""


@dataclass(frozen=True)
class CheckpointMetadata:
    """What must be known of a checkpoint to resume from it."""

    step: int
    """Optimizer steps that were done."""
    world_size: int
    zero_stage: int
    micro_batch_size: int
    """Clips of a rank that passed at once, which `micro_batch_size: auto` takes again."""

    def fits(self, world_size: int, zero_stage: int) -> bool:
        """Whether ranks of this number and stage can load it as it is.

        Without ZeRO there is one file for all ranks; with it each rank has its own part, and other ranks need the
        universal form.

        Raises:
            ValueError: not even that helps: ZeRO 0 and the others keep different things.
        """
        if (self.zero_stage == 0) != (zero_stage == 0):
            raise ValueError(
                f"the checkpoint at step {self.step} was written with trainer.zero_stage {self.zero_stage} and can't "
                f"be resumed with {zero_stage}: set it back, or remove the checkpoint to start the training over"
            )
        return zero_stage == 0 or (self.world_size, self.zero_stage) == (world_size, zero_stage)


def checkpoint_name(step: int) -> str:
    """Name of the directory of the checkpoint at `step`; names sort as steps do."""
    return f"step{step:09d}"


def begin_checkpoint(directory: Path, step: int) -> None:
    """Make the directory of a checkpoint, empty: a save that was killed, on other ranks, left other files."""
    path = directory / checkpoint_name(step)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)


def finish_checkpoint(directory: Path, metadata: CheckpointMetadata, keep: int) -> None:
    """Declare a checkpoint whole, and drop all others but the `keep - 1` before it."""
    path = directory / checkpoint_name(metadata.step)
    sync_directory(path)
    write_json(path / METADATA_FILE, asdict(metadata) | {FILES: _hashes(path)})
    kept = [whole for whole in _whole(directory) if whole.name <= path.name][-keep:]
    for other in directory.glob("step*"):
        if other not in kept:
            shutil.rmtree(other)


def newest_checkpoint(directory: Path) -> CheckpointMetadata | None:
    """The newest checkpoint that is whole and undamaged, None where there is none.

    A damaged one is passed over with a warning that names the file.
    """
    for path in reversed(_whole(directory)):
        try:
            return _read_checked(path)
        except (OSError, ValueError) as error:
            log.warning("the checkpoint %s is damaged and passed over: %s", path, error)
    return None


def _read_checked(path: Path) -> CheckpointMetadata:
    """The metadata of a checkpoint whose files are those that were written.

    Raises:
        ValueError: they aren't, or the metadata are damaged; the message names the file.
        OSError: a file can't be read.
    """
    try:
        tree = json.loads((path / METADATA_FILE).read_text(encoding="utf-8"))
        hashes: Mapping[str, str] = tree.pop(FILES)
        metadata = CheckpointMetadata(**tree)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{METADATA_FILE} is not what was written ({error!r})") from error
    for name, expected in hashes.items():
        if not (path / name).is_file():
            raise ValueError(f"{name} is missing")
        if hash_file(path / name) != expected:
            raise ValueError(f"{name} is not what was written")
    return metadata


def _hashes(path: Path) -> dict[str, str]:
    """SHA-256 of every file of a checkpoint but its metadata."""
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name != METADATA_FILE)
    return {file.relative_to(path).as_posix(): hash_file(file) for file in files}


def _whole(directory: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    return sorted(path.parent for path in directory.glob(f"step*/{METADATA_FILE}"))


def make_universal(checkpoint: Path, out: Path) -> None:
    """Write `checkpoint` to `out` in DeepSpeed's universal form, which any number of ranks can load.

    Raises:
        RuntimeError: DeepSpeed couldn't; the message has its last line.
    """
    shutil.rmtree(out, ignore_errors=True)
    command = [
        *(sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", "--inject_missing_state"),
        *("--input_folder", str(checkpoint), "--output_folder", str(out)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).rsplit("\n", 1)[-1]
        raise RuntimeError(f"{checkpoint} can't be converted for another number of ranks: {last}")
