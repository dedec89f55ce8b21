"""A tiny architecture, a random batch, and the published model with its numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clip4vla.clips.batch import Batch
from clip4vla.config import AudioConfig, ModelConfig
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.published import PUBLISHED_AUDIO, Published, from_published
from clip4vla.model.towers import Architecture

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
AUDIO = AudioConfig(tiles=2, freq_mask_fraction=0.1)
TINY = Architecture(
    "tiny",
    {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 2, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": 3},
    },
)
MODEL = ModelConfig(architecture="tiny")
END = 63


@pytest.fixture
def build() -> Callable[..., Clip4Vla]:
    """Build a tiny model, always with the same weights, with changes to its config."""

    def build_one(audio: AudioConfig = AUDIO, has_cross_encoder: bool = False, **changes: object) -> Clip4Vla:
        torch.manual_seed(0)
        return Clip4Vla(MODEL.model_copy(update=changes), audio, TINY, has_cross_encoder=has_cross_encoder)

    return build_one


@pytest.fixture
def batch() -> Batch:
    """Four clips: complete; one frame and a shorter sound; without sound; without frames."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, END, (4, 9), generator=generator)
    for row, end in enumerate((8, 5, 3, 6)):
        tokens[row, end], tokens[row, end + 1 :] = END, 0
    return Batch(
        clip_ids=("a", "b", "c", "d"),
        frames=torch.randint(0, 256, (4, 2, 3, 32, 32), dtype=torch.uint8, generator=generator),
        video_mask=torch.tensor([[1, 1], [1, 0], [1, 1], [0, 0]], dtype=torch.bool),
        waveform=0.1 * torch.randn(4, 2, 50000, generator=generator),
        samples=torch.tensor([50000, 20000, 0, 35000]),
        tokens=tokens.unsqueeze(1),
        audio_types=torch.tensor([0, 1, -1, 1]),
    )


@pytest.fixture(scope="session")
def arrays() -> dict[str, Tensor]:
    """The published model's inputs and outputs; inputs in float32."""
    with np.load(REFERENCE / "model.npz") as stored:
        tensors = {key: stored[key] for key in stored.files if not key.endswith("grad_names")}
    return {key: torch.from_numpy(np.asarray(value)) for key, value in tensors.items()}


@pytest.fixture(scope="session")
def pretrained_state() -> dict[str, Tensor]:
    """The published pretraining checkpoint, tensor for tensor as it was saved."""
    with np.load(REFERENCE / "checkpoint.npz") as stored:
        halves = np.stack([stored["low"], stored["high"]], axis=1).reshape(-1).view(np.float16)
        index = json.loads(str(stored["index"]))
    values, state = torch.from_numpy(halves), {}
    for key, (shape, dtype) in index.items():
        size = int(np.prod(shape))
        state[key] = values[:size].reshape(shape).to(getattr(torch, dtype))
        values = values[size:]
    return state


@pytest.fixture(scope="session")
def finetuned_state(pretrained_state: dict[str, Tensor], arrays: dict[str, Tensor]) -> dict[str, Tensor]:
    """As retrieval fine-tuning saves it: with a head on the cross encoder, without the caption head."""
    heads = {key: arrays[f"retr/{key}"] for key in ("similarity_dense.weight", "similarity_dense.bias")}
    return {key: value for key, value in pretrained_state.items() if not key.startswith("cls.")} | heads


@pytest.fixture(scope="session")
def pretrained(pretrained_state: dict[str, Tensor]) -> Published:
    return from_published(pretrained_state, PUBLISHED_AUDIO, "pretrained")


@pytest.fixture(scope="session")
def finetuned(finetuned_state: dict[str, Tensor]) -> Published:
    return from_published(finetuned_state, PUBLISHED_AUDIO, "finetuned")
