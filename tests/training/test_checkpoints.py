"""Checkpoints as files: which one is resumed from, which are kept, and which ranks can load one."""

import sys
from pathlib import Path

import pytest

from clip4vla.training.checkpoints import (
    METADATA_FILE,
    CheckpointMetadata,
    begin_checkpoint,
    checkpoint_name,
    finish_checkpoint,
    make_universal,
    newest_checkpoint,
)


def write(directory: Path, metadata: CheckpointMetadata, keep: int = 9) -> None:
    """A checkpoint as the engine and DeepSpeed write it."""
    begin_checkpoint(directory, metadata.step)
    (directory / checkpoint_name(metadata.step) / "tensors").write_text("...")
    finish_checkpoint(directory, metadata, keep)


def test_an_empty_directory_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


def test_a_save_that_was_killed_is_ignored_and_overwritten(tmp_path: Path) -> None:
    finished = CheckpointMetadata(step=90, world_size=2, zero_stage=1)
    write(tmp_path, finished)
    begin_checkpoint(tmp_path, 100)
    half_written = tmp_path / checkpoint_name(100) / "zero_pp_rank_3"
    half_written.write_text("...")
    assert newest_checkpoint(tmp_path) == finished
    again = CheckpointMetadata(step=100, world_size=1, zero_stage=1)
    write(tmp_path, again)
    assert newest_checkpoint(tmp_path) == again
    assert not half_written.exists()


def test_only_the_last_whole_ones_are_kept(tmp_path: Path) -> None:
    begin_checkpoint(tmp_path, 2000)
    for step in (5, 90, 100, 1000):
        write(tmp_path, CheckpointMetadata(step, 1, 0), keep=2)
    (tmp_path / "mlflow_run").write_text("id")
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint_name(100), checkpoint_name(1000), "mlflow_run"}


@pytest.mark.parametrize("content", ["", '{"epoch": 1}'])
def test_damaged_metadata_are_named(tmp_path: Path, content: str) -> None:
    write(tmp_path, CheckpointMetadata(3, 1, 0))
    (tmp_path / checkpoint_name(3) / METADATA_FILE).write_text(content)
    with pytest.raises(ValueError, match=rf"{checkpoint_name(3)} can't be read .*: remove it"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("written_on", "world_size", "zero_stage", "fits"),
    [
        (CheckpointMetadata(1, 2, 0), 2, 0, True),
        (CheckpointMetadata(1, 2, 0), 5, 0, True),
        (CheckpointMetadata(1, 2, 1), 2, 1, True),
        (CheckpointMetadata(1, 2, 1), 1, 1, False),
        (CheckpointMetadata(1, 2, 1), 2, 2, False),
        (CheckpointMetadata(1, 4, 3), 8, 3, False),
    ],
)
def test_parts_of_ranks_fit_as_many_ranks_only(
    written_on: CheckpointMetadata, world_size: int, zero_stage: int, fits: bool
) -> None:
    assert written_on.fits(world_size, zero_stage) is fits


@pytest.mark.parametrize(("before", "now"), [(0, 1), (2, 0)])
def test_turning_zero_on_or_off_is_refused(before: int, now: int) -> None:
    with pytest.raises(ValueError, match=f"written with trainer.zero_stage {before}.*with {now}: set it back"):
        CheckpointMetadata(7, 2, before).fits(2, now)


def test_a_conversion_that_fails_is_an_error_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\necho first >&2\necho no optimizer states >&2\nexit 3\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    with pytest.raises(RuntimeError, match=r"step000000001 can't be converted.*: no optimizer states$"):
        make_universal(tmp_path / checkpoint_name(1), tmp_path / "universal")
