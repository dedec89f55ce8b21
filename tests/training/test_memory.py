"""Memory of a training, estimated before there is one, against a real forward pass and by its growth."""

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
from clip4vla.training.memory import PROCESS_BYTES, STATE_BYTES, TrainingCost, cost_of

AUDIO = AudioConfig(tiles=3, hop=256)
OPTIMIZER = OptimizerConfig(lr=1e-3)
COMMON = {"epochs": 1, "batch_size": 8, "frames": 2, "max_tokens": 16, "optimizer": OPTIMIZER}
PRETRAINING = PretrainingConfig(**COMMON)
SHARED = {"shared_text_both": 1.0, "shared_captions_per_clip": 2, "identical_captions_match": True}
RETRIEVAL = RetrievalConfig(**COMMON, **SHARED, text_experts=1.0)


def cost(training: object = PRETRAINING, fusion: str = "mean", **trainer: object) -> TrainingCost:
    model = ModelConfig(architecture="stamp-small", fusion=fusion, weights="openai")  # nothing is downloaded
    return cost_of(training, model, AUDIO, "both", TrainerConfig(**trainer))  # type: ignore[arg-type]


def test_the_state_is_sixteen_bytes_a_weight() -> None:
    from clip4vla.model.clip4vla import Clip4Vla

    with torch.device("meta"):
        model = Clip4Vla(ModelConfig(architecture="stamp-small"), AUDIO)
    assert cost().state_bytes == STATE_BYTES * sum(weight.numel() for weight in model.parameters())


@pytest.mark.parametrize(
    ("training", "fusion"),
    [
        (PRETRAINING, "mean"),
        (RETRIEVAL, "experts"),
        (RetrievalConfig(**COMMON, cross_encoder=1.0), "sequence"),
        (CaptioningConfig(**COMMON), "mean"),
    ],
)
def test_every_training_has_a_cost_that_grows_with_its_frames(training: object, fusion: str) -> None:
    small = cost(training, fusion)
    large = cost(training.model_copy(update={"frames": 8}), fusion)  # type: ignore[attr-defined]
    assert 100_000 < small.clip_bytes < large.clip_bytes
    assert small.clip_flops < large.clip_flops
    assert small.state_bytes == large.state_bytes


def test_recomputed_activations_take_less() -> None:
    assert cost(activation_checkpointing=True).clip_bytes < 0.5 * cost().clip_bytes


def test_every_further_frame_adds_as_much_to_the_byte() -> None:
    """Nothing is counted twice, and weights, which all frames share, aren't counted; one frame needs no mean."""
    sizes = [cost(PRETRAINING.model_copy(update={"frames": frames})).clip_bytes for frames in (2, 3, 4)]
    assert sizes[2] - sizes[1] == sizes[1] - sizes[0] > 0


def test_the_largest_micro_batch_that_fits_fits() -> None:
    found = TrainingCost(state_bytes=1_000_000_000, clip_bytes=500_000_000, clip_flops=1)
    for memory in (2_000_000_000, 3_000_000_000, 10_000_000_000, 64_000_000_000):
        clips = found.clips_that_fit(memory)
        assert found.memory(clips) <= memory or clips == 0
        assert found.memory(clips + 1) > memory
    assert found.clips_that_fit(PROCESS_BYTES) == 0
