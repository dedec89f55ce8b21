"""The CLIP part of a model in open_clip's format, and its tokenizer in that of Hugging Face.

In: a model. Out: `open_clip_config.json` and `open_clip_model.safetensors`, which open_clip opens by `local-dir:`;
`vocab.json`, `merges.txt` and `tokenizer_config.json`, which `transformers.CLIPTokenizer` opens.
"""

from pathlib import Path

from safetensors.torch import save_file

from clip4vla.model.byte_pairs import SPECIAL, byte_pairs
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.utils.files import atomic_file, write_json

CONFIG_FILE = "open_clip_config.json"
WEIGHTS_FILE = "open_clip_model.safetensors"


def save_open_clip(model: Clip4Vla, directory: Path) -> None:
    """Write the text and image towers of `model` and its tokenizer to `directory`."""
    architecture = model.architecture
    preprocessing = {"mean": list(architecture.image_mean), "std": list(architecture.image_std)}
    _save_tokenizer(model.context_length, directory)
    write_json(directory / CONFIG_FILE, {"model_cfg": architecture.config, "preprocess_cfg": preprocessing})
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.clip.state_dict().items()}
    with atomic_file(directory / WEIGHTS_FILE) as partial:
        save_file(tensors, partial)


def _save_tokenizer(context_length: int, directory: Path) -> None:
    pairs = byte_pairs()
    write_json(directory / "vocab.json", {token: index for index, token in enumerate(pairs.tokens)})
    with atomic_file(directory / "merges.txt") as partial:
        partial.write_text("\n".join(["#version: 0.2", *map(" ".join, pairs.merges), ""]), encoding="utf-8")
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": context_length}
    start, end = SPECIAL
    tokens = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": end}
    write_json(directory / "tokenizer_config.json", settings | tokens)
