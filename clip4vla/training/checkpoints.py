"""The checkpoints of a training as files: which one to resume from, which ones to keep, conversion for other ranks.

In: the directory of the checkpoints of one training, `stepNNN/` each, in which DeepSpeed writes tensors. Out: the
`CheckpointMetadata` of the one to resume from. The metadata are written last and atomically, so that a save that was
killed has none and is never resumed from. (DeepSpeed's own file `latest` may be left empty by a kill.)
"""

import json
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from clip4vla.utils.files import write_json

METADATA_FILE = "metadata.json"


@dataclass(frozen=True)
class CheckpointMetadata:
    """What must be known of a checkpoint to resume from it."""

    step: int
    """Optimizer steps that were done."""
    world_size: int
    zero_stage: int

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
    """Declare a checkpoint whole, and drop all others but the last `keep - 1`."""
    write_json(directory / checkpoint_name(metadata.step) / METADATA_FILE, asdict(metadata))
    kept = _whole(directory)[-keep:]
    for path in directory.glob("step*"):
        if path not in kept:
            shutil.rmtree(path)


def newest_checkpoint(directory: Path) -> CheckpointMetadata | None:
    """The newest whole checkpoint, None where there is none.

    Raises:
        ValueError: it isn't ours.
    """
    whole = _whole(directory)
    if not whole:
        return None
    try:
        return CheckpointMetadata(**json.loads((whole[-1] / METADATA_FILE).read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"the checkpoint {whole[-1]} can't be read ({error}): remove it to go on without") from error


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
