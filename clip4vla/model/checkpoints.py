"""A model as a directory: `model.safetensors` and `config.json`, which load without DeepSpeed and params.yaml.

In: a model, or such a directory. Out: the other. A file that doesn't fit is an error, never half a model.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from clip4vla.atomic import atomic_file, write_json
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.towers import Architecture, check_state
from clip4vla.params import AudioParams, ModelParams

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"
FORMAT = "clip4vla/1"
VOCABULARY = "decoder.vocabulary"
"""Tensor that a model has which writes captions."""
SCORER = "scorer.similarity.weight"
"""Tensor that a model has which scores pairs."""


def save_model(model: Clip4Vla, directory: Path) -> None:
    """Write `model` to `directory`, each file whole or not at all, the weights last."""
    config = {
        "format": FORMAT,
        "model": model.params.model_dump(mode="json"),
        "audio": model.audio_params.model_dump(mode="json"),
        "architecture": asdict(model.architecture),
    }
    write_json(directory / CONFIG_FILE, config)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
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
    tensors = load_file(weights)
    vocabulary, scores_pairs = tensors.get(VOCABULARY), SCORER in tensors
    model = Clip4Vla(config["model"], config["audio"], config["architecture"], vocabulary, scores_pairs)
    check_state(model.state_dict(), tensors, str(weights))
    model.load_state_dict(tensors)
    return model.eval()


def _read_config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no model: {CONFIG_FILE} is missing")
    tree = json.loads(path.read_text(encoding="utf-8"))
    if tree.get("format") != FORMAT:
        raise ValueError(f"{path} has the format {tree.get('format')!r}, not {FORMAT!r}")
    try:
        return {
            "model": ModelParams.model_validate(tree["model"]),
            "audio": AudioParams.model_validate(tree["audio"]),
            "architecture": _architecture(**tree["architecture"]),
        }
    except (ValidationError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a model's config: {error}") from error


def _architecture(name: str, config: dict[str, Any], image_mean: list[float], image_std: list[float]) -> Architecture:
    return Architecture(name, config, tuple(image_mean), tuple(image_std))
