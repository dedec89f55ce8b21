"""Tiny models with the shape of trained ones, on the real tokenizer, and small videos for them to read."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from clip4vla.config import (
    AudioConfig,
    AudioToken,
    CaptioningConfig,
    ClipsConfig,
    InferenceConfig,
    ModelConfig,
    OptimizerConfig,
    RetrievalConfig,
)
from clip4vla.media.encode import encode
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.experts import GATE_SCALE
from clip4vla.model.pretrained import save_model
from clip4vla.model.tokenizer import Tokenizer
from clip4vla.model.towers import find_architecture

RATE = 16_000
SIZE = 64
WIDTH = 64
"""D: width of the embedding and of the towers, which a sequence fusion needs to be equal."""
CLIPS = ClipsConfig(frames=3, size=SIZE, max_seconds=2.0)
AUDIO = AudioConfig(tiles=2)
MODEL = ModelConfig(architecture="stamp-small", fusion_layers=1)
OPTIMIZER = OptimizerConfig(lr=1e-3)
RETRIEVAL = RetrievalConfig(epochs=1, batch_size=2, frames=2, max_tokens=16, optimizer=OPTIMIZER)
CAPTIONING = CaptioningConfig(epochs=1, batch_size=2, frames=2, max_tokens=16, optimizer=OPTIMIZER)
INFERENCE = InferenceConfig.of(CLIPS, RETRIEVAL)
CAPTIONING_INFERENCE = InferenceConfig.of(CLIPS, CAPTIONING)
SENTENCES = ("a dog barks", "perro")
"""Their words are all that the captioning model can generate."""


def tiny_model(
    fusion: str = "mean",
    captioning: bool = False,
    has_cross_encoder: bool = False,
    audio_experts: tuple[AudioToken, ...] = ("verbal", "nonverbal"),
) -> Clip4Vla:
    """A model of random weights, always the same ones."""
    architecture = find_architecture(MODEL.architecture, None)
    config = dict(architecture.config) | {"embed_dim": WIDTH}
    config["vision_cfg"] = architecture.config["vision_cfg"] | {"width": WIDTH, "layers": 1}
    config["text_cfg"] = architecture.config["text_cfg"] | {"width": WIDTH, "layers": 1, "heads": 2}
    vocabulary = Tokenizer(12).vocabulary(SENTENCES) if captioning else None
    torch.manual_seed(0)
    model = Clip4Vla(
        MODEL.model_copy(update={"fusion": fusion, "audio_experts": audio_experts}),
        AUDIO,
        replace(architecture, config=config),
        vocabulary,
        has_cross_encoder,
    )
    if model.decoder is not None:
        torch.manual_seed(3)
        for parameter in model.decoder.parameters():
            torch.nn.init.normal_(parameter, std=0.5)  # so that captions depend on the clip
    return model.eval()


def expert_model(audio_experts: tuple[AudioToken, ...] = ("verbal", "nonverbal")) -> Clip4Vla:
    """A model with experts whose queries, weights and vectors of missing modalities differ from their initial ones."""
    model = tiny_model("experts", audio_experts=audio_experts)
    assert model.experts is not None
    torch.manual_seed(2)
    for parameter in model.experts.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.nn.init.normal_(model.experts.texts.gate.weight, std=1 / GATE_SCALE)
    return model


def save_retrieval(directory: Path, inference: InferenceConfig | None = INFERENCE) -> Path:
    """The directory of a trained retrieval model; `inference` None: as earlier versions wrote it."""
    save_model(tiny_model(), directory, inference)
    (directory / "run.json").write_text("{}")
    return directory


def save_captioning(directory: Path, inference: InferenceConfig | None = CAPTIONING_INFERENCE) -> Path:
    """The directory of a trained captioning model."""
    save_model(tiny_model(captioning=True), directory, inference)
    (directory / "run.json").write_text("{}")
    return directory


def write_video(path: Path, seed: int, seconds: float = 1.0, fps: int = 4) -> Path:
    """Frames and sound of noise."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 255, (round(fps * seconds), SIZE, SIZE, 3)).astype(np.uint8)
    encode(path, frames, fps, rng.uniform(-0.5, 0.5, round(RATE * seconds)).astype(np.float32), RATE)
    return path
