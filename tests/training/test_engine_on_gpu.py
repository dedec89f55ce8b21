"""The engine on one GPU, over NCCL, against the naive training on the same GPU; captions against those of the CPU."""

from pathlib import Path

import pytest
import torch

from tests.training.engine_cases import CAPTIONS, HALF_CAPTIONS, HALF_ON_GPU, ON_GPU, RESUMED, SAME
from tests.training.test_engine import (
    CLOSE,
    OF_LOSSES,
    assert_trained_like_float32,
    distance,
    naive,
    naive_captions,
    read,
    run_cases,
)

pytestmark = pytest.mark.gpu
GPU = torch.device("cuda")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the engines of one rank left."""
    return run_cases(tmp_path_factory.mktemp("engine_on_gpu"), "cuda")


@pytest.mark.parametrize("name", ON_GPU)
def test_losses_and_weights_are_those_of_one_pass_over_the_whole_batch(out: Path, name: str) -> None:
    case, found = ON_GPU[name], read(out, name)
    losses, weights = naive(case, case.steps, GPU)
    for step, expected in zip(found["losses"], losses, strict=True):
        assert step == pytest.approx(expected, **OF_LOSSES)
    assert found["weights"].keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(found["weights"][key], weight, **CLOSE, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", [name for name, case in CAPTIONS.items() if case.world_size == 1])
def test_captioning_is_that_of_the_cpu(out: Path, name: str) -> None:
    found = read(out, name)
    losses, weights = naive_captions(CAPTIONS[name])
    assert [step["caption"] for step in found["losses"]] == pytest.approx(losses, rel=1e-4)
    for key, weight in weights.items():
        torch.testing.assert_close(found["weights"][key], weight, **CLOSE, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("name", [name for name, case in SAME.items() if name != "whole" and not case.moments_on_disk])
def test_what_is_recomputed_changes_no_loss(out: Path, name: str) -> None:
    expected, found = read(out, "whole"), read(out, name)
    for step, losses in zip(found["losses"], expected["losses"], strict=True):
        assert step == pytest.approx(losses, **OF_LOSSES)
    assert distance(found["weights"], expected["weights"]) < CLOSE["atol"]


@pytest.mark.parametrize("name", HALF_ON_GPU)
def test_half_precision_trains_like_float32_and_keeps_float32_weights(out: Path, name: str) -> None:
    losses, _ = naive(HALF_ON_GPU[name], HALF_ON_GPU[name].steps, GPU)
    assert_trained_like_float32(read(out, name), losses)


@pytest.mark.parametrize("name", HALF_CAPTIONS)
def test_captions_in_half_precision_are_learned_like_in_float32(out: Path, name: str) -> None:
    found = read(out, name)
    losses, _ = naive_captions(HALF_CAPTIONS[name])
    assert [step["caption"] for step in found["losses"]] == pytest.approx(losses, rel=0.03)


@pytest.mark.parametrize("name", [name for name, case in RESUMED.items() if not case.moments_on_disk])
def test_a_resumed_training_goes_on_as_the_one_that_was_not_stopped(out: Path, name: str) -> None:
    through, again = read(out, f"{name}.through"), read(out, f"{name}.again")
    for step, expected in zip(again["losses"], through["losses"], strict=True):
        assert step == pytest.approx(expected, **OF_LOSSES)
    assert distance(again["weights"], through["weights"]) < CLOSE["atol"]
