"""The benchmark that kills trainings: it reports a difference, and there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import kill_resume
from benchmarks.kill_resume import compare
from clip4vla.training.spec import TrainSpec
from tests.project import REPOSITORY
from tests.training.specs import make_spec

STEPS = 2
CURVES = {"loss": {1: {0.5}, 2: {0.25}}, "lr": {1: {0.1}, 2: {0.0}}}


@pytest.fixture
def specs(tmp_path: Path) -> tuple[TrainSpec, TrainSpec]:
    """Two trainings that left the same weights."""
    made = make_spec(tmp_path, "through"), make_spec(tmp_path, "killed")
    for spec in made:
        spec.out.mkdir(parents=True)
        save_file({"a": torch.ones(2), "b": torch.zeros(1)}, spec.out / "model.safetensors")
    return made


def with_curves(monkeypatch: pytest.MonkeyPatch, killed: kill_resume.Curves) -> None:
    monkeypatch.setattr(kill_resume, "curves", lambda spec: CURVES if spec.out.name == "through" else killed)


def test_the_same_curves_and_weights_are_equal(
    specs: tuple[TrainSpec, TrainSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_curves(monkeypatch, CURVES)
    assert compare(*specs, STEPS) == {
        "metrics": ["loss", "lr"],
        "differing_steps": [],
        "differing_weights": [],
        "equal": True,
    }
    assert not compare(*specs, steps=3)["equal"]


@pytest.mark.parametrize(
    "killed",
    [
        {"loss": {1: {0.5}}, "lr": CURVES["lr"]},
        {"loss": {1: {0.5}, 2: {0.25, 0.25000001}}, "lr": CURVES["lr"]},
        {"loss": CURVES["loss"], "lr": {1: {0.1}, 2: {0.05}}},
        {"loss": CURVES["loss"], "lr": {1: {0.1}}},
    ],
)
def test_a_step_that_is_missing_or_was_once_different_is_found(
    specs: tuple[TrainSpec, TrainSpec], killed: kill_resume.Curves, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_curves(monkeypatch, killed)
    found = compare(*specs, STEPS)
    assert found["differing_steps"] == [2]
    assert not found["equal"]


def test_weights_that_differ_by_a_bit_are_found(
    specs: tuple[TrainSpec, TrainSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_curves(monkeypatch, CURVES)
    almost = torch.nextafter(torch.ones(2), torch.zeros(2))
    save_file({"a": almost, "c": torch.zeros(1)}, specs[1].out / "model.safetensors")
    found = compare(*specs, STEPS)
    assert found["differing_weights"] == ["a", "b", "c"]
    assert not found["equal"]


@pytest.mark.slow
def test_a_training_that_is_killed_once_ends_as_an_undisturbed_one() -> None:
    command = [sys.executable, "-m", "benchmarks.kill_resume", "--kills", "1", "--steps", "10", "--ranks", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    [line] = done.stdout.splitlines()
    results = json.loads(line)["results"]
    assert results["equal"]
    assert results["kills"] == sum(results["victims"].values()) == 1
