"""`clip4vla rehearse PRESET` at full size, for every preset of a published corpus: minutes each, and much memory.

The small one, of a tiny architecture, shows the rest: what is kept, what is said, and what isn't touched.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from clip4vla.rehearsal.rehearse import RESULT
from clip4vla.utils.supervise import processes_in
from tests.project import REPOSITORY, environment, make_project, presets_of_published_corpora

pytestmark = pytest.mark.slow
REHEARSE = [sys.executable, "-m", "clip4vla", "rehearse"]
SMALL = {
    "preset": "msrvtt-1ka",
    "model": {"architecture": "tiny", "weights": "params.yaml"},  # any file: a rehearsal writes its own
    "clips": {"frames": 2, "size": 36},
    "audio": {"tiles": 2},
    **{name: {"frames": 1, "max_tokens": 16} for name in ("pretraining", "retrieval", "captioning")},
}


@pytest.fixture
def rooms(tmp_path: Path) -> Iterator[Path]:
    """Where temporary directories are made, none of which may stay."""
    directory = tmp_path / "rooms"
    directory.mkdir()
    yield directory
    assert list(directory.glob("clip4vla-rehearsal-*")) == []


def rehearse(project: Path, rooms: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*REHEARSE, *arguments],
        cwd=project,
        env=environment() | {"TMPDIR": str(rooms)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a small preset of MSR-VTT."""
    directory = make_project(tmp_path_factory.mktemp("project"))
    (directory / "presets/small.yaml").write_text(yaml.safe_dump(SMALL))
    return directory


@pytest.mark.parametrize("preset", presets_of_published_corpora())
def test_everything_runs_at_full_size(preset: str, rooms: Path, tmp_path: Path) -> None:
    done = rehearse(REPOSITORY, rooms, preset, "--keep", str(tmp_path / "kept"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"everything ran: {preset}" in done.stdout
    result = json.loads((tmp_path / "kept" / RESULT).read_text())
    stages = [figures["stage"] for figures in result["measured"]]
    assert {"pretrain", "ablate", "promote@retrieval", "promote@captioning"} <= set(stages)
    assert [estimate["stage"] for estimate in result["extrapolated"]] == stages
    assert all(figures["memory"] > 0 for figures in result["measured"])
    assert result["extrapolated_seconds"] > sum(figures["seconds"] for figures in result["measured"]) / 2


def test_a_small_one_leaves_the_project_as_it_was(project: Path, rooms: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*") if "__pycache__" not in path.parts}
    done = rehearse(project, rooms, "small")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "everything ran: small"
    assert sum(line.startswith("evaluate@retrieval: ") for line in lines) == 2
    after = {path: path.stat().st_mtime_ns for path in project.rglob("*") if "__pycache__" not in path.parts}
    assert after == before


def test_a_stage_that_fails_is_named_and_nothing_stays(project: Path, rooms: Path) -> None:
    (project / "presets/wrong.yaml").write_text("preset: small\nclips: {limits: {max_pixels: 10000}}")
    done = rehearse(project, rooms, "wrong")
    assert done.returncode == 1
    assert done.stderr.startswith("clip4vla: the stage clips@msrvtt failed: ")
    assert "too_large" in done.stderr


def test_an_interruption_ends_every_process_and_removes_the_directory(project: Path, rooms: Path) -> None:
    process = subprocess.Popen(
        [*REHEARSE, "small"],
        cwd=project,
        env=environment() | {"TMPDIR": str(rooms)},
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("params: "):
            [directory] = rooms.glob("clip4vla-rehearsal-*")
            os.kill(process.pid, signal.SIGINT)
    assert process.wait(60) != 0
    assert not directory.exists()
    assert processes_in(directory) == {}
