"""The engine against a naive training: one process, one graph over the whole batch, torch's own AdamW."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clip4vla.clips.batch import Batch
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.training.engine import Engine
from clip4vla.training.objectives import Objective, Outputs
from clip4vla.training.optimizer import parameter_groups
from tests.training.engine_cases import CAPTIONS, CLIPS, EXACT, HALF, HALF_CAPTIONS, LEFT, RESUMED, SAME, SEED, Case
from tests.training.tiny import OPTIMIZER, NaiveTraining, build, build_captioner, make_batch

CPU = torch.device("cpu")
Weights = dict[str, Tensor]
CLOSE = {"rtol": 1e-4, "atol": 3e-5}
"""Weights move by 1e-2 a step."""
OF_LOSSES = {"rel": 1e-4, "abs": 1e-5}
"""Float32 rounds a logit of 100 to less than the latter."""


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the engines of all cases left."""
    return run_cases(tmp_path_factory.mktemp("engine"))


def run_cases(directory: Path, *device: str) -> Path:
    """Run `engine_cases` into `directory`."""
    command = [sys.executable, "-m", "tests.training.engine_cases", str(directory), *device]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCH_EXTENSIONS_DIR": str(directory / "extensions")}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return directory


def read(out: Path, name: str, rank: int = 0) -> Any:
    return torch.load(out / f"{name}.{rank}.pt", map_location="cpu", weights_only=False)


def micro_batches(case: Case) -> list[list[slice]]:
    """For each rank the rows of its micro-batches in the whole batch, sizes differing by one, larger ones first."""
    shares = []
    for rank in range(case.world_size):
        pieces = torch.arange(CLIPS)[case.rows(rank)].tensor_split(case.micro_batches)
        shares.append([slice(int(piece[0]), int(piece[-1]) + 1) for piece in pieces])
    return shares


def naive(case: Case, steps: int, device: torch.device = CPU) -> tuple[list[dict[str, float]], Weights]:
    """Losses by step and final weights."""
    model = build(case.temperature, case.fusion, case.dropout, case.cross_encoder).to(device)
    training = NaiveTraining(model, case.contrastive, case.optimizer)
    losses = [training.step(case.batch(step).to(device), micro_batches(case), SEED, step) for step in range(steps)]
    return losses, {name: weight.cpu() for name, weight in model.state_dict().items()}


def distance(a: Weights, b: Weights) -> float:
    """Largest difference of any weight."""
    assert a.keys() == b.keys()
    return float(max((a[key] - b[key]).detach().abs().max() for key in a))


@pytest.mark.parametrize("name", EXACT)
def test_losses_and_weights_are_those_of_one_pass_over_the_whole_batch(out: Path, name: str) -> None:
    case, found = EXACT[name], read(out, name)
    losses, weights = naive(case, case.steps)
    for step, expected in zip(found["losses"], losses, strict=True):
        assert step == pytest.approx(expected, **OF_LOSSES)
    assert found["weights"].keys() == weights.keys()
    for key, weight in weights.items():
        torch.testing.assert_close(found["weights"][key], weight, **CLOSE, msg=lambda m, key=key: f"{key}: {m}")


def naive_captions(case: Case) -> tuple[list[float], Weights]:
    """Losses by step and final weights of captioning: the mean over clips, each by itself."""
    model = build_captioner(case.fusion)
    groups = parameter_groups(model, OPTIMIZER)
    adamw = torch.optim.AdamW(groups, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps)
    losses = []
    for step in range(case.steps):
        batch = make_batch(CLIPS, step)
        each = []
        for row in range(CLIPS):
            clip = batch[row : row + 1]
            media = model.encode_media(clip, audio_token="both", modalities="both")
            each.append(model.caption_loss(clip.tokens, media, 0.1))
        adamw.zero_grad()
        torch.cat(each).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), case.clip_norm)
        adamw.step()
        losses.append(torch.cat(each).mean().item())
    return losses, model.state_dict()


@pytest.mark.parametrize("name", CAPTIONS)
def test_captioning_in_micro_batches_and_ranks_is_captioning_of_the_whole_batch(out: Path, name: str) -> None:
    case, found = CAPTIONS[name], read(out, name)
    losses, weights = naive_captions(case)
    for step, expected in zip(found["losses"], losses, strict=True):
        assert step == pytest.approx({"caption": expected, "loss": expected}, rel=1e-4)
    assert found["weights"].keys() == weights.keys()
    before = build_captioner(case.fusion).state_dict()
    for key, weight in weights.items():
        assert found["weights"][key].dtype == weight.dtype
        torch.testing.assert_close(found["weights"][key], weight, **CLOSE, msg=lambda m, key=key: f"{key}: {m}")
        if key.startswith("clip.") and not key.startswith("clip.visual."):
            assert torch.equal(found["weights"][key], before[key])
    assert distance(found["weights"], before) > 1e-3


class WithoutDeepSpeed(Engine):
    """The cached step in this process: gradients are added up on the model, and no optimizer takes a step."""

    def __init__(self, model: Clip4Vla, objective: Objective) -> None:
        self.objective = objective
        self._own = model

    def _forward(self, batch: Batch, seed: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
        torch.manual_seed(sum(seed))
        return self.objective.outputs(self._own, batch), self._own.scale()

    def _backward(self, loss: Tensor) -> None:
        loss.backward()


class Variance(Objective):
    """Outputs of other names and types than the project's: numbers, integers, a mask, numbers that no loss reads."""

    needs_all_clips = True

    def outputs(self, model: Clip4Vla, batch: Batch) -> dict[str, Tensor]:
        video = model(batch, audio_token="none", names=("video",)).video
        return {
            "video": video,
            "weight": batch.samples % 5,
            "has_video": batch.video_mask.any(1),
            "not_read": 2 * video.sum(1),
        }

    def losses(self, outputs: Outputs, scale: Tensor) -> dict[str, Tensor]:
        found = (scale * outputs["video"] * outputs["weight"].unsqueeze(1))[outputs["has_video"]]
        return {"variance": found.var(0).sum()}


@pytest.mark.parametrize("pieces", [2, 5])
def test_the_cached_step_takes_outputs_of_any_name_and_type(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    monkeypatch.setattr("clip4vla.training.engine.dist.get_world_size", lambda: 1)
    objective, batch = Variance(), make_batch(CLIPS, 0)
    expected, model = build(), build()
    losses = objective.losses(objective.outputs(expected, batch), expected.scale())
    losses["variance"].backward()
    [rows] = micro_batches(Case(1, pieces))
    found = WithoutDeepSpeed(model, objective)._step_cached(batch, rows, (SEED,))
    torch.testing.assert_close(found, losses)
    gradients = {name: p.grad for name, p in expected.named_parameters() if p.grad is not None}
    assert {"clip.logit_scale", "clip.visual.conv1.weight"} <= gradients.keys()
    parameters = {name: p for name, p in model.named_parameters() if p.grad is not None}
    assert parameters.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(parameters[name].grad, gradient, rtol=1e-4, atol=1e-5)


def test_the_comparison_would_notice_gradients_of_another_size() -> None:
    case = Case(1, 1)
    _, weights = naive(case, 1)
    model = build()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    twice = OPTIMIZER.model_copy(update={"eps": OPTIMIZER.eps / 2})  # to Adam, half the eps is twice the gradient
    NaiveTraining(model, case.contrastive, twice).step(make_batch(CLIPS, 0), micro_batches(case), SEED, 0)
    assert distance(before, weights) > 1e-3
    assert distance(model.state_dict(), weights) > 30 * CLOSE["atol"]


@pytest.mark.parametrize("name", [name for name, case in EXACT.items() if case.world_size > 1])
def test_every_rank_reports_the_losses_of_all_ranks(out: Path, name: str) -> None:
    first, *others = [read(out, name, rank)["losses"] for rank in range(EXACT[name].world_size)]
    assert all(losses == first for losses in others)
    assert all(step["loss"] == pytest.approx(sum(step.values()) - step["loss"], rel=1e-5) for step in first)


def test_only_rank_0_collects_the_weights(out: Path) -> None:
    assert read(out, "ranks", 1)["weights"] is None
    assert read(out, "ranks_zero2", 1)["weights"] is None


@pytest.mark.parametrize("name", [name for name in SAME if name != "whole"])
def test_what_is_recomputed_or_on_disk_changes_not_a_bit(out: Path, name: str) -> None:
    expected, found = read(out, "whole"), read(out, name)
    assert found["losses"] == expected["losses"]
    assert distance(found["weights"], expected["weights"]) == 0


@pytest.mark.parametrize("name", HALF)
def test_half_precision_trains_like_float32_and_keeps_float32_weights(out: Path, name: str) -> None:
    losses, _ = naive(HALF[name], HALF[name].steps)
    assert_trained_like_float32(read(out, name), losses)


def assert_trained_like_float32(found: dict[str, Any], losses: list[dict[str, float]]) -> None:
    """The losses come near `losses`, and weights are kept in more digits than bf16 has."""
    assert found["losses"][0] == pytest.approx(losses[0], rel=0.03)
    assert found["losses"][-1]["loss"] == pytest.approx(losses[-1]["loss"], rel=0.03)
    text_projection = found["weights"]["clip.text_projection"]
    assert text_projection.dtype == torch.float32
    assert not torch.equal(text_projection, text_projection.bfloat16().float())


@pytest.mark.parametrize("name", HALF_CAPTIONS)
def test_captions_in_half_precision_are_learned_like_in_float32(out: Path, name: str) -> None:
    case, found = HALF_CAPTIONS[name], read(out, name)
    losses, _ = naive_captions(case)
    assert [step["caption"] for step in found["losses"]] == pytest.approx(losses, rel=0.03)
    assert {weight.dtype for weight in found["weights"].values() if weight.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("name", RESUMED)
def test_resuming_on_as_many_ranks_changes_not_a_bit(out: Path, name: str) -> None:
    through, again = read(out, f"{name}.through"), read(out, f"{name}.again")
    assert again["losses"] == through["losses"]
    assert distance(again["weights"], through["weights"]) == 0


@pytest.mark.parametrize("name", RESUMED)
def test_resuming_on_one_rank_goes_on_with_weights_and_moments(out: Path, name: str) -> None:
    through, elsewhere = read(out, f"{name}.through"), read(out, f"{name}.elsewhere")
    for step, expected in zip(elsewhere["losses"], through["losses"], strict=True):
        assert step == pytest.approx(expected, **OF_LOSSES)
    for key, weight in through["weights"].items():
        torch.testing.assert_close(elsewhere["weights"][key], weight, **CLOSE)


def test_ranks_agree_whether_one_of_them_was_asked_to_stop(out: Path) -> None:
    assert read(out, "agreed", 0) == read(out, "agreed", 1) == [False, True, True]


def test_joining_the_ranks_compiles_nothing(out: Path) -> None:
    """DeepSpeed's shared-memory op is switched off by a private name, which another version may not have."""
    assert not list((out / "extensions").rglob("*"))


@pytest.mark.parametrize("name", LEFT)
def test_a_step_that_is_left_changes_nothing_and_the_resumed_run_is_the_same_to_the_last_bit(
    out: Path, name: str
) -> None:
    case, passes = LEFT[name]
    for rank in range(2):
        left = read(out, f"{name}.left", rank)
        rounds = 1 if case.captions else 2
        assert len(left["places"]) == passes
        assert left["places"][0] == (f"micro-batch 1 of {case.micro_batches}{', pass 1 of 2' * (rounds == 2)}", 0.0)
        assert left["places"][-1][1] == pytest.approx((passes - 1) / (rounds * case.micro_batches))
        through, again = read(out, f"{name}.through", rank), read(out, f"{name}.again", rank)
        assert again["losses"] == through["losses"][2:]
    left, through, again = read(out, f"{name}.left"), read(out, f"{name}.through"), read(out, f"{name}.again")
    for key, weight in through["weights"].items():
        assert torch.equal(left["before"][key], left["after"][key]), key
        assert torch.equal(again["weights"][key], weight), key
    assert distance(left["before"], through["weights"]) > 1e-3
