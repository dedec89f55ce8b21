"""The engine against a naive training: one process, one graph over the whole batch, torch's own AdamW."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.engine_cases import CLIPS, EXACT, HALF, RESUMED, SEED, STEPS, Case
from tests.training.tiny import EVERYTHING, OPTIMIZER, NaiveTraining, build, make_batch

CLOSE = {"rtol": 1e-4, "atol": 2e-6}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the engines of all cases left."""
    directory = tmp_path_factory.mktemp("engine")
    command = [sys.executable, "-m", "tests.training.engine_cases", str(directory)]
    if Path("/tmp/ec").exists(): return Path("/tmp/ec")
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return directory


def read(out: Path, name: str, rank: int = 0) -> Any:
    return torch.load(out / f"{name}.{rank}.pt", weights_only=False)


def micro_batches(case: Case) -> list[list[slice]]:
    """For each rank the rows of its micro-batches in the whole batch, sizes differing by one at most, larger ones first."""
    shares = []
    for rank in range(case.world_size):
        rows = torch.arange(CLIPS)[case.rows(rank)].tensor_split(case.micro_batches)
        shares.append([slice(int(piece[0]), int(piece[-1]) + 1) for piece in rows])
    return shares


def naive(case: Case, steps: int, clip_norm: float | None = None) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Losses by step and final weights."""
    model = build(case.temperature, case.fusion, case.dropout)
    optimizer = OPTIMIZER.model_copy(update={"clip_norm": clip_norm or case.clip_norm})
    training = NaiveTraining(model, EVERYTHING, optimizer)
    losses = [training.step(make_batch(CLIPS, step), micro_batches(case), SEED, step) for step in range(steps)]
    return losses, model.state_dict()


@pytest.mark.parametrize("name", EXACT)
def test_losses_and_weights_are_those_of_one_pass_over_the_whole_batch(out: Path, name: str) -> None:
    case, found = EXACT[name], read(out, name)
    losses, weights = naive(case, STEPS)
    assert [list(step) for step in found["losses"]] == [list(step) for step in losses]
    for step, expected in zip(found["losses"], losses, strict=True):
        assert list(step.values()) == pytest.approx(list(expected.values()), rel=1e-4)
    assert found["weights"].keys() == weights.keys()
    for key, expected_weight in weights.items():
        torch.testing.assert_close(found["weights"][key], expected_weight, **CLOSE, msg=lambda m, key=key: f"{key}: {m}")
