"""A model as a directory: `model.safetensors` and `config.json`, which load without DeepSpeed and params.yaml.

In: a model, or such a directory. Out: the other. A file that doesn't fit is an error, never half a model.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from clip4vla.config import AudioConfig, InferenceConfig, ModelConfig
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.towers import Architecture, check_finite, check_state
from clip4vla.records import CONFIG_FILE, WEIGHTS_FILE
from clip4vla.utils.files import atomic_file, read_json, write_json

FORMAT = "clip4vla/1"
VOCABULARY = "decoder.vocabulary"
"""Tensor that a model has if it has a caption decoder."""
CROSS_ENCODER = "cross_encoder.similarity.weight"
"""Tensor that a model has if it has a cross encoder."""
RENAMED_TENSORS = {"scorer.": "cross_encoder."}
"""Prefixes of tensor names of earlier versions."""


def save_model(model: Clip4Vla, directory: Path, inference: InferenceConfig | None = None) -> None:
    """Write `model`, and how it reads media and texts, to `directory`: each file atomically, the weights last.

    Raises:
        ValueError: a weight isn't finite; nothing is written.
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    check_finite(tensors, "the trained model")
    config = {
        "format": FORMAT,
        "model": model.config.model_dump(mode="json"),
        "audio": model.audio_config.model_dump(mode="json"),
        "architecture": asdict(model.architecture),
    }
    if inference is not None:
        config["inference"] = inference.model_dump(mode="json")
    write_json(directory / CONFIG_FILE, config)
    with atomic_file(directory / WEIGHTS_FILE) as partial:
        save_file(tensors, partial)


def load_model(directory: Path) -> Clip4Vla:
    """The model in `directory`, on the CPU, in evaluation mode.

    Raises:
        ValueError: a file is missing or isn't ours, or a tensor is missing, unknown or of another shape; the
            message names it.
    """
    config = _read_config(directory / CONFIG_FILE)
    weights = directory / WEIGHTS_FILE
    if not weights.is_file():
        raise ValueError(f"{directory} holds no model: {WEIGHTS_FILE} is missing")
    tensors = read_weights(weights)
    tensors = {_current_name(name): tensor for name, tensor in tensors.items()}
    vocabulary, has_cross_encoder = tensors.get(VOCABULARY), CROSS_ENCODER in tensors
    model = Clip4Vla(config["model"], config["audio"], config["architecture"], vocabulary, has_cross_encoder)
    check_state(model.state_dict(), tensors, str(weights))
    model.load_state_dict(tensors)
    return model.eval()


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Raises:
        ValueError: the file is broken, or a tensor isn't finite; the message names it.
    """
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} can't be read as safetensors: {error}") from error
    check_finite(tensors, str(path))
    return tensors


def read_inference_config(directory: Path) -> InferenceConfig | None:
    """How the model in `directory` reads media and texts; None where an earlier version wrote it without.

    Raises:
        ValueError: see `load_model`.
    """
    return _read_config(directory / CONFIG_FILE)["inference"]


def _current_name(name: str) -> str:
    for old, new in RENAMED_TENSORS.items():
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no model: {CONFIG_FILE} is missing")
    tree = read_json(path)
    if not isinstance(tree, dict):
        raise ValueError(f"{path} is not a model's config")
    if tree.get("format") != FORMAT:
        raise ValueError(f"{path} has the format {tree.get('format')!r}, not {FORMAT!r}")
    try:
        return {
            "model": ModelConfig.model_validate(tree["model"]),
            "audio": AudioConfig.model_validate(tree["audio"]),
            "architecture": _architecture(**tree["architecture"]),
            "inference": InferenceConfig.model_validate(tree["inference"]) if "inference" in tree else None,
        }
    except (ValidationError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a model's config: {error}") from error


def _architecture(name: str, config: dict[str, Any], image_mean: list[float], image_std: list[float]) -> Architecture:
    return Architecture(name, config, tuple(image_mean), tuple(image_std))
