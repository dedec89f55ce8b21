"""Memory of a training, estimated before there is one, and the plans that make a step fit."""

from dataclasses import replace

import pytest
import torch

from clip4vla.config import (
    AudioConfig,
    CaptioningConfig,
    ModelConfig,
    OptimizerConfig,
    PretrainingConfig,
    RetrievalConfig,
    TrainerConfig,
)
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.training.memory import (
    MARGIN,
    PROCESS_BYTES,
    MemoryPlan,
    StateBytes,
    StepMemory,
    TrainingCost,
    Wanted,
    _Alive,
    cost_of,
    describe,
    plan_step,
    step_memory,
)
from tests.training.tiny import EVERYTHING, build

AUDIO = AudioConfig(tiles=3, hop=256)
OPTIMIZER = OptimizerConfig(lr=1e-3)
COMMON = {"epochs": 1, "batch_size": 8, "frames": 2, "max_tokens": 16, "optimizer": OPTIMIZER}
PRETRAINING = PretrainingConfig(**COMMON)
SHARED = {"shared_text_both": 1.0, "shared_captions_per_clip": 2, "identical_captions_match": True}
RETRIEVAL = RetrievalConfig(**COMMON, **SHARED, text_experts=1.0)


def cost(
    training: object = PRETRAINING, fusion: str = "mean", world_size: int = 1, on_gpu: bool = False, **trainer: object
) -> TrainingCost:
    model = ModelConfig(architecture="stamp-small", fusion=fusion, weights="openai")  # nothing is downloaded
    return cost_of(training, model, AUDIO, "both", TrainerConfig(**trainer), on_gpu, world_size)  # type: ignore[arg-type]


def weights(model: Clip4Vla) -> int:
    return sum(weight.numel() for weight in model.parameters())


def test_the_state_is_sixteen_bytes_a_weight_in_float32() -> None:
    with torch.device("meta"):
        model = Clip4Vla(ModelConfig(architecture="stamp-small"), AUDIO)
    state, largest = cost().memory.state, max(weight.numel() for weight in model.parameters())
    assert (state.weights, state.gradients, state.moments) == (
        4 * weights(model),
        4 * weights(model),
        8 * weights(model),
    )
    assert state.largest_moments == 8 * largest


def test_several_ranks_without_zero_copy_their_gradients() -> None:
    assert cost().memory.state.exchanged == 0
    assert cost(world_size=2).memory.state.exchanged == cost(world_size=2).memory.state.gradients
    assert cost(world_size=2, zero_stage=1).memory.state.exchanged == 0


def test_zero_divides_the_state_among_ranks_by_its_stage() -> None:
    one, stage1, stage2, stage3 = (cost(world_size=4, zero_stage=stage).memory.state for stage in range(4))
    assert stage1.moments == stage2.moments == stage3.moments == one.moments * 12 // 8 // 4
    assert stage1.weights == stage2.weights == one.weights == pytest.approx(4 * stage3.weights)
    assert stage1.gradients - stage2.gradients == pytest.approx(3 / 4 * one.gradients)
    assert stage3.gradients == pytest.approx(one.gradients / 4)


def test_half_precision_without_zero_adds_copies_of_the_weights() -> None:
    half, whole = cost(on_gpu=False, precision="bf16").memory, cost(on_gpu=False, precision="fp32").memory
    assert half.state.weights == 1.5 * whole.state.weights
    assert (half.state.gradients, half.state.moments) == (whole.state.gradients, whole.state.moments)


@pytest.mark.parametrize(("stage", "weights"), [(0, 1.5), (1, 0.5)])
def test_in_half_precision_activations_take_half_and_weights_too_with_zero(stage: int, weights: float) -> None:
    half, whole = (cost(on_gpu=True, zero_stage=stage, precision=name).memory for name in ("bf16", "fp32"))
    assert half.state.weights == weights * whole.state.weights
    assert half._peak(16, 0) < 0.7 * whole._peak(16, 0)


def test_the_state_is_that_of_the_tokens_which_are_kept() -> None:
    whole, kept = build(), build()
    kept.keep_tokens(torch.arange(10))
    kept.audio.requires_grad_(False)
    sizes = [
        step_memory(model, PRETRAINING, EVERYTHING, TrainerConfig(), False, 1).state.gradients
        for model in (whole, kept)
    ]
    audio = sum(weight.numel() for weight in kept.audio.parameters())
    assert sizes[0] - sizes[1] == 4 * (54 * 16 + audio)


@pytest.mark.parametrize(
    ("training", "fusion"),
    [
        (PRETRAINING, "mean"),
        (RETRIEVAL, "experts"),
        (RetrievalConfig(**COMMON, cross_encoder=1.0), "sequence"),
        (CaptioningConfig(**COMMON), "mean"),
    ],
)
def test_every_training_takes_more_with_more_frames_and_less_with_recomputed_blocks(
    training: object, fusion: str
) -> None:
    small = cost(training, fusion)
    large = cost(training.model_copy(update={"frames": 8}), fusion)  # type: ignore[attr-defined]
    assert small.clip_flops < large.clip_flops
    assert small.memory.state.weights == large.memory.state.weights
    sizes = [memory.bytes(32, 32) for memory in (small.memory, large.memory)]
    assert 0.1e9 < sizes[0] - PROCESS_BYTES < sizes[1] - PROCESS_BYTES
    memory = large.memory
    assert memory.bytes(32, 32, memory.blocks) < memory.bytes(32, 32, memory.blocks - 4) < memory.bytes(32, 32)


def test_captioning_recomputes_nothing_of_the_text_tower() -> None:
    texts = len(build().clip.transformer.resblocks)
    captioning, pretraining = cost(CaptioningConfig(**COMMON)).memory, cost().memory
    assert texts > 0
    assert captioning.blocks == pretraining.blocks  # the decoder has as many blocks as the text tower


def test_what_is_alive_at_once_is_counted_and_what_is_gone_is_not() -> None:
    model = build().to("meta")
    with _Alive(model) as alive, torch.device("meta"):
        kept = torch.zeros(1000)
        del kept
        first = torch.zeros(2000)
        second = first + 1
        model.clip.visual.proj.view(-1)
        second.view(2, -1)
        del first
        torch.zeros(500)
    assert alive.peak == 4 * (2000 + 2000)


# plans

GB = 1_000_000_000
STATE = StateBytes(weights=GB, gradients=GB, moments=2 * GB, largest_moments=GB // 10, exchanged=0, clip=0)


def memory_of(gb_per_clip: float, blocks: int = 10) -> StepMemory:
    """Each recomputed block saves 8 % of the activations."""
    return StepMemory(
        STATE, blocks, lambda clips, recomputed: round(clips * gb_per_clip * (1 - 0.08 * recomputed) * GB / MARGIN)
    )


MEMORY = memory_of(1.0)
FOUR = Wanted(share=4, micro_batch_size=4, comparing=True, disk=True)
MANY = Wanted(share=64, micro_batch_size="auto", comparing=True, disk=True)


def test_the_parts_add_up() -> None:
    assert MEMORY.bytes(4, 4) == pytest.approx(5 * GB + 4 * GB)
    assert MEMORY.bytes(4, 4, recomputed=5) == pytest.approx(5 * GB + 4 * 0.6 * GB)
    assert MEMORY.bytes(4, 4, recomputed=10, moments_on_disk=True) == pytest.approx(3 * GB + 0.8 * GB)
    of_ranks = StepMemory(replace(STATE, exchanged=GB), 10, lambda clips, _: clips * GB)
    assert [of_ranks.bytes(clips, 4) for clips in (0, 1, 4)] == [
        6 * GB,
        round((5 + MARGIN) * GB),
        round((5 + 4 * MARGIN) * GB),
    ]
    with_batches = StepMemory(replace(STATE, clip=1000), 10, lambda *_: 0)
    assert with_batches.bytes(1, 7) == 5 * GB + 2 * 7 * 1000
    assert with_batches.bytes(1, 0, 0, moments_on_disk=True) == 3 * GB + STATE.largest_moments


@pytest.mark.parametrize(
    ("budget", "plan"),
    [
        (9.1, MemoryPlan(4)),
        (8.9, MemoryPlan(4, 1)),
        (5.9, MemoryPlan(4, 10)),
        (5.7, MemoryPlan(4, 5, moments_on_disk=True)),
        (3.9, MemoryPlan(4, 10, moments_on_disk=True)),
    ],
)
def test_a_given_micro_batch_recomputes_no_more_than_it_must_and_then_uses_the_disk(
    budget: float, plan: MemoryPlan
) -> None:
    assert plan_step(MEMORY, FOUR, round(budget * GB)) == plan


def test_a_given_micro_batch_is_at_most_the_share() -> None:
    assert plan_step(MEMORY, replace(FOUR, micro_batch_size=32), 100 * GB) == MemoryPlan(4)


@pytest.mark.parametrize(
    ("budget", "plan"),
    [
        (70, MemoryPlan(64)),
        (20, MemoryPlan(64, 10)),
        (15.1, MemoryPlan(8)),
        (7, MemoryPlan(16, 10, moments_on_disk=True)),
        (5, MemoryPlan(8, 10, moments_on_disk=True)),
        (3.5, MemoryPlan(2, 10, moments_on_disk=True)),
    ],
)
def test_auto_takes_what_takes_least_time(budget: float, plan: MemoryPlan) -> None:
    found = plan_step(MEMORY, MANY, round(budget * GB))
    assert found.micro_batch_size == plan.micro_batch_size
    assert found.moments_on_disk == plan.moments_on_disk
    assert found.recomputed_blocks <= plan.recomputed_blocks
    size = MEMORY.bytes(found.micro_batch_size, 64, found.recomputed_blocks, found.moments_on_disk)
    assert size <= budget * GB


def test_where_clips_are_not_compared_a_smaller_micro_batch_is_better_than_recomputing() -> None:
    assert plan_step(MEMORY, replace(MANY, comparing=False), 25 * GB) == MemoryPlan(16)


def test_what_fits_nowhere_is_refused_with_what_would_fit() -> None:
    with pytest.raises(
        ValueError, match=r"^a micro-batch of 4 takes at least 3\.8 GB of a rank, which has 3\.5 GB: "
    ) as e:
        plan_step(MEMORY, FOUR, round(3.5 * GB), "retrieval.micro_batch_size")
    assert "retrieval.micro_batch_size: 2 fits, and auto finds it, and trainer.memory_gb sets" in str(e.value)
    with pytest.raises(
        ValueError, match=r"of 4 takes at least 5\.8 GB of a rank, which has 3\.5 GB: a smaller model\."
    ):
        plan_step(MEMORY, replace(FOUR, disk=False), round(3.5 * GB))
    for wanted in (MANY, replace(FOUR, micro_batch_size=1)):
        with pytest.raises(
            ValueError, match=r"of 1 takes at least 3\.2 GB of a rank, which has 3\.0 GB: a smaller model"
        ):
            plan_step(MEMORY, wanted, 3 * GB)


def test_each_estimate_is_made_once() -> None:
    asked: list[tuple[int, int]] = []
    memory = StepMemory(STATE, 36, lambda *pair: asked.append(pair) or pair[0] * (GB - pair[1] * GB // 40))  # type: ignore[func-returns-value]
    plan_step(memory, MANY, 9 * GB)
    assert len(asked) == len(set(asked)) < 20


def test_a_plan_is_described_in_one_line() -> None:
    plan = plan_step(MEMORY, FOUR, 4 * GB)
    assert describe(plan, MEMORY, 4, 4 * GB) == (
        "memory: about 3.8 GB of the 4.0 GB of a rank, micro-batches of 4, 10 of 10 blocks recomputed, "
        "Adam's moments on disk"
    )
