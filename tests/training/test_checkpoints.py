"""Checkpoints as files: which one is resumed from, which are kept, and which ranks can load one."""

import os
import sys
from collections.abc import Callable
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
    path = directory / checkpoint_name(metadata.step)
    (path / "tensors").write_text("...")
    (path / "deeper").mkdir()
    (path / "deeper/rank_1").write_text("...")
    finish_checkpoint(directory, metadata, keep)


def test_an_empty_directory_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "missing") is None


def test_a_save_that_was_killed_is_ignored_and_overwritten(tmp_path: Path) -> None:
    finished = CheckpointMetadata(step=90, world_size=2, zero_stage=1, micro_batch_size=4)
    write(tmp_path, finished)
    begin_checkpoint(tmp_path, 100)
    half_written = tmp_path / checkpoint_name(100) / "zero_pp_rank_3"
    half_written.write_text("...")
    assert newest_checkpoint(tmp_path) == finished
    again = CheckpointMetadata(step=100, world_size=1, zero_stage=1, micro_batch_size=4)
    write(tmp_path, again)
    assert newest_checkpoint(tmp_path) == again
    assert not half_written.exists()


def test_only_the_last_whole_ones_are_kept(tmp_path: Path) -> None:
    begin_checkpoint(tmp_path, 2000)
    for step in (5, 90, 100, 1000):
        write(tmp_path, CheckpointMetadata(step, 1, 0, 4), keep=2)
    (tmp_path / "mlflow_run").write_text("id")
    assert {path.name for path in tmp_path.iterdir()} == {checkpoint_name(100), checkpoint_name(1000), "mlflow_run"}


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1])


def change(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes([content[0] ^ 1]) + content[1:])


@pytest.mark.parametrize("file", [METADATA_FILE, "tensors", "deeper/rank_1"])
@pytest.mark.parametrize("damage", [Path.unlink, cut, change], ids=["missing", "cut", "changed"])
def test_a_damaged_newest_one_is_passed_over_for_the_one_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: Callable[[Path], None]
) -> None:
    before = CheckpointMetadata(90, 1, 0, 4)
    write(tmp_path, before)
    write(tmp_path, CheckpointMetadata(100, 1, 0, 4))
    damaged = tmp_path / checkpoint_name(100)
    damage(damaged / file)
    assert newest_checkpoint(tmp_path) == before
    if (damaged / METADATA_FILE).exists():  # without metadata it never was whole
        assert f"{damaged} is damaged and passed over: {file}" in caplog.text


@pytest.mark.parametrize("content", ["", "[]", '{"epoch": 1}', '{"step": 3, "files": {}}', '{"files": []}'])
def test_damaged_metadata_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, content: str) -> None:
    write(tmp_path, CheckpointMetadata(3, 1, 0, 4))
    (tmp_path / checkpoint_name(3) / METADATA_FILE).write_text(content)
    assert newest_checkpoint(tmp_path) is None
    assert f"{checkpoint_name(3)} is damaged and passed over: {METADATA_FILE}" in caplog.text


def test_after_a_damaged_one_earlier_checkpoints_count(tmp_path: Path) -> None:
    write(tmp_path, CheckpointMetadata(90, 1, 0, 4))
    write(tmp_path, CheckpointMetadata(100, 1, 0, 4))
    (tmp_path / checkpoint_name(100) / "tensors").unlink()
    stopped = CheckpointMetadata(95, 1, 0, 4)
    write(tmp_path, stopped, keep=1)
    assert newest_checkpoint(tmp_path) == stopped
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint_name(95)]


def test_tensors_are_on_the_disk_before_the_checkpoint_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = set[str]()
    fsync = os.fsync

    def note(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        if "metadata" in name:
            assert {"tensors", "rank_1", "deeper", checkpoint_name(7)} <= synced
        synced.add(name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    write(tmp_path, CheckpointMetadata(7, 1, 0, 4))
    assert any("metadata" in name for name in synced)


@pytest.mark.parametrize(
    ("written_on", "world_size", "zero_stage", "fits"),
    [
        (CheckpointMetadata(1, 2, 0, 4), 2, 0, True),
        (CheckpointMetadata(1, 2, 0, 4), 5, 0, True),
        (CheckpointMetadata(1, 2, 1, 4), 2, 1, True),
        (CheckpointMetadata(1, 2, 1, 4), 1, 1, False),
        (CheckpointMetadata(1, 2, 1, 4), 2, 2, False),
        (CheckpointMetadata(1, 4, 3, 4), 8, 3, False),
    ],
)
def test_parts_of_ranks_fit_as_many_ranks_only(
    written_on: CheckpointMetadata, world_size: int, zero_stage: int, fits: bool
) -> None:
    assert written_on.fits(world_size, zero_stage) is fits


@pytest.mark.parametrize(("before", "now"), [(0, 1), (2, 0)])
def test_turning_zero_on_or_off_is_refused(before: int, now: int) -> None:
    with pytest.raises(ValueError, match=f"written with trainer.zero_stage {before}.*with {now}: set it back"):
        CheckpointMetadata(7, 2, before, 4).fits(2, now)


def test_a_conversion_that_fails_is_an_error_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\necho first >&2\necho no optimizer states >&2\nexit 3\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    with pytest.raises(RuntimeError, match=r"step000000001 can't be converted.*: no optimizer states$"):
        make_universal(tmp_path / checkpoint_name(1), tmp_path / "universal")
