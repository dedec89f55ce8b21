"""The authors' own checkpoints (`pytorch_model.bin*`), read and written: the only place with their names.

In: a state dict as the code published with CLIP4VLA saves it. Out: a `Clip4Vla` of the shape that its tensors tell,
what was left over and what was lacking; or the other way round the published names, shapes and number formats, so
that a checkpoint read and written again is the same to the last bit.

    clip4vla import-checkpoint pytorch_model.bin.pretrain.0 DIRECTORY

writes it as a model of ours. The published code stores three tokens beyond CLIP's vocabulary (mask, unknown and
padding) and pads texts with the last of them, so that the end token isn't the highest id.
"""

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip4vla.config import AudioConfig, ModelConfig
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.pretrained import save_model
from clip4vla.model.towers import Architecture, check_state

HEAD_WIDTH = 64
"""Width of CLIP's attention heads, in both towers."""
TOKENS_AFTER_END = 3
OPEN_CLIP_NAMES = {(768, 32): "ViT-B-32-quickgelu", (768, 16): "ViT-B-16-quickgelu"}
"""What open_clip calls the published image towers, by width and patch."""
RENAMED = {
    "audio.visual.control_embedding": "audio.type_embedding",
    "cross.token_type_embeddings.weight": "fusion.type_embedding",
}
MOVED = {
    "clip.": "clip.",
    "audio.visual.": "audio.",
    "cross.": "fusion.",
    "similarity_dense.": "cross_encoder.similarity.",
}
HALF = re.compile(r"^(clip|audio)\.(.*\.)?(conv1\.weight|attn\..+|mlp\..+|proj|text_projection)$")
"""What the published scripts store as float16."""
PUBLISHED_AUDIO = AudioConfig(recipe="published")


@dataclass(frozen=True)
class Published:
    """What a published checkpoint turned into."""

    model: Clip4Vla
    """It scores pairs where the checkpoint was fine-tuned for retrieval through the cross encoder."""
    unused: tuple[str, ...]
    """Keys of the checkpoint that have no place here."""
    missing: tuple[str, ...]
    """Parameters of the model, under their published names, that keep their initialisation."""


def from_published(state: dict[str, Tensor], audio_config: AudioConfig, source: str) -> Published:
    """Build the model that `state` describes and fill it.

    The cross encoder is taken only where `similarity_dense` shows that it was trained: pretraining saves it untrained,
    beside a caption head that is not used here.

    Args:
        state: tensors under their published names.
        audio_config: the front end to use with it.
        source: where `state` comes from, for messages.

    Raises:
        ValueError: `state` isn't a published checkpoint with a ViT image tower, or a tensor has another shape than
            the rest of the checkpoint needs.
    """
    architecture = _architecture(state, source)
    fused = "similarity_dense.weight" in state
    config = _model_config(state, architecture, fused, source)
    model = Clip4Vla(config, audio_config, architecture, has_cross_encoder=fused)
    taken = {key: name for key in state if (name := _our_name(key, fused)) is not None}
    ours = {name: state[key].float() for key, name in taken.items()}
    missing = _complete(ours, model)
    check_state(model.state_dict(), ours, source)
    model.load_state_dict(ours)
    return Published(model.eval(), tuple(sorted(state.keys() - taken.keys())), missing)


def to_published(model: Clip4Vla) -> dict[str, Tensor]:
    """The tensors of `model` under their published names, shapes and number formats.

    A model without a type token (`audio_token` none) is written without one.

    Raises:
        ValueError: the model has a part that the published code lacks, such as experts.
    """
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        key = published_name(name)
        state[key] = value.half() if HALF.match(key) else value
    state["clip.logit_scale"] = state["clip.logit_scale"].reshape(())
    if model.config.audio_token == "none":
        del state["audio.visual.control_embedding"]
        state["audio.visual.positional_embedding"] = state["audio.visual.positional_embedding"][:-1]
    return state


def _our_name(key: str, fused: bool) -> str | None:
    """Our name of a published key, None where it has no place here."""
    if key.startswith("cross.") and not fused:
        return None
    if key in RENAMED:
        return RENAMED[key]
    return next((ours + key.removeprefix(theirs) for theirs, ours in MOVED.items() if key.startswith(theirs)), None)


def published_name(name: str) -> str:
    """The published name of one of our parameters."""
    for theirs, ours in RENAMED.items():
        if name == ours:
            return theirs
    for theirs, ours in MOVED.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    raise ValueError(f"{name} has no published name: the published code has no such part")


def _complete(ours: dict[str, Tensor], model: Clip4Vla) -> tuple[str, ...]:
    """Adjust `ours` in place to what the model holds; the published names of what keeps its initialisation."""
    if "clip.logit_scale" in ours:
        ours["clip.logit_scale"] = ours["clip.logit_scale"].reshape(1)
    if "audio.type_embedding" in ours:
        return ()
    fresh = model.audio.state_dict()
    ours["audio.type_embedding"] = fresh["type_embedding"]
    positions = ours.get("audio.positional_embedding")
    if positions is not None:
        ours["audio.positional_embedding"] = torch.cat([positions, fresh["positional_embedding"][-1:]])
    return ("audio.visual.control_embedding", "audio.visual.positional_embedding[-1]")


def _model_config(state: dict[str, Tensor], architecture: Architecture, fused: bool, source: str) -> ModelConfig:
    return ModelConfig(
        architecture=architecture.name,
        weights=source,
        fusion="sequence" if fused else "mean",
        fusion_layers=max(_layers(state, "cross."), 1),
        audio_token="both" if "audio.visual.control_embedding" in state else "none",
        temperature="fixed",
    )


def _architecture(state: dict[str, Tensor], source: str) -> Architecture:
    """open_clip's config of the towers, from the shapes of their tensors."""
    try:
        patches = state["clip.visual.conv1.weight"].shape
        grid = round((len(state["clip.visual.positional_embedding"]) - 1) ** 0.5)
        text_width, embed_dim = state["clip.text_projection"].shape
        vocabulary, context = len(state["clip.token_embedding.weight"]), len(state["clip.positional_embedding"])
    except KeyError as error:
        raise ValueError(f"{source} is not a checkpoint of the published code with a ViT: it lacks {error}") from None
    image: dict[str, Any] = {
        "image_size": grid * patches[-1],
        "patch_size": patches[-1],
        "width": patches[0],
        "layers": _layers(state, "clip.visual."),
        "head_width": HEAD_WIDTH,
    }
    text: dict[str, Any] = {
        "context_length": context,
        "vocab_size": vocabulary,
        "width": text_width,
        "heads": text_width // HEAD_WIDTH,
        "layers": _layers(state, "clip."),
        "pool_type": "eos",
        "eos_id": vocabulary - TOKENS_AFTER_END - 1,
    }
    config = {"embed_dim": embed_dim, "quick_gelu": True, "vision_cfg": image, "text_cfg": text}
    name = OPEN_CLIP_NAMES.get((patches[0], patches[-1]), f"ViT of width {patches[0]} and patch {patches[-1]}")
    return Architecture(name, config)


def _layers(state: dict[str, Tensor], prefix: str) -> int:
    pattern = re.compile(re.escape(prefix) + r"transformer\.resblocks\.(\d+)\.")
    return len({found.group(1) for key in state if (found := pattern.match(key))})


def convert(checkpoint: Path, directory: Path, tiles: int) -> Published:
    """Write a published checkpoint as a model directory.

    Args:
        checkpoint: `pytorch_model.bin*` of the published code.
        directory: where model.safetensors and config.json go.
        tiles: most log-mel tiles of a clip.

    Raises:
        ValueError: see `from_published`.
    """
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        # a broken file fails in many ways; at one with other things than tensors, torch advises to run what is in it
        is_pickled = isinstance(error, pickle.UnpicklingError)
        reason = "it isn't one of tensors alone" if is_pickled else str(error).partition("\n")[0]
        raise ValueError(f"{checkpoint} can't be read as a checkpoint ({reason})") from error
    published = from_published(state, PUBLISHED_AUDIO.model_copy(update={"tiles": tiles}), str(checkpoint))
    save_model(published.model, directory)
    return published
