"""The stages of `dvc repro` by its output: figures of each, and the message of the one that fails."""

from pathlib import Path

import pytest

from clip4vla.rehearsal import measure
from clip4vla.rehearsal.measure import StageFailedError, StageFigures, directory_bytes, output_bytes, reproduce

LOCK = "stages: {clips@a: {cmd: x, outs: [{path: d, size: 700}, {path: e, size: 42}]}}"


@pytest.fixture
def dvc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A command in place of DVC, `dvc.sh` in the project."""
    monkeypatch.setattr(measure, "supervised", lambda _: ["sh", "dvc.sh"])
    monkeypatch.setattr(measure, "LOOK_EVERY_S", 0.01)
    (tmp_path / "dvc.lock").write_text(LOCK)
    return tmp_path


def test_each_stage_has_its_time_memory_and_disk(dvc: Path) -> None:
    (dvc / "dvc.sh").write_text("echo \"Running stage 'clips@a':\"; sleep 0.3; echo \"Running stage 'promote@a':\"\n")
    seen: list[StageFigures] = []
    clips, promote = reproduce(dvc, [], seen.append)
    assert seen == [clips, promote]
    assert (clips.stage, promote.stage) == ("clips@a", "promote@a")
    assert clips.seconds >= 0.2 > promote.seconds
    assert clips.memory > 100_000
    assert (clips.disk, promote.disk) == (742, 0)
    assert "Running stage 'clips@a'" in (dvc / measure.LOG).read_text()


def test_a_failed_stage_is_named_with_its_message(dvc: Path) -> None:
    lines = [
        "Running stage 'pretrain':",
        "step 1",
        "clip4vla: there is no",
        "  disk space",
        "ERROR: failed to reproduce",
    ]
    (dvc / "dvc.sh").write_text("".join(f'echo "{line}"\n' for line in lines) + "exit 255\n")
    with pytest.raises(StageFailedError, match=r"^the stage pretrain failed: there is no\n  disk space$"):
        reproduce(dvc, [], lambda _: None)
    (dvc / "dvc.sh").write_text("echo \"Running stage 'ablate':\"; echo 'Killed'; exit 255\n")
    with pytest.raises(StageFailedError, match=r"^the stage ablate failed: Killed$"):
        reproduce(dvc, [], lambda _: None)


def test_an_interruption_ends_what_was_started(dvc: Path) -> None:
    (dvc / "dvc.sh").write_text("echo \"Running stage 'a':\"; echo \"Running stage 'b':\"; sleep 1000\n")

    def interrupt(_: StageFigures) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reproduce(dvc, [], interrupt)  # returns at once, not after the sleep


def test_sizes_are_of_files_that_count_once(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")
    (tmp_path / "b").hardlink_to(tmp_path / "a")
    (tmp_path / "c").symlink_to(tmp_path / "a")
    assert directory_bytes(tmp_path) == 5
    assert output_bytes(tmp_path, "clips@a") == 0
