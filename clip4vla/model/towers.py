"""Text and image tower by open_clip: built by name, loaded, called.

In: the name of an architecture and where its weights are. Out: an `open_clip.CLIP`. The only module that builds, loads
and calls the towers of open_clip.

Shapes: N texts, L text tokens, W width of the text tower, D embedding width.
"""

import copy
import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import try_to_load_from_cache
from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from open_clip.factory import load_state_dict
from open_clip.pretrained import download_pretrained
from open_clip.transformer import VisionTransformer
from torch import Tensor

from clip4vla.model.layers import replace_layers

ARCHITECTURES = Path(__file__).parent / "architectures"
UNSUPPORTED_VISION = ("timm_model_name", "attentional_pool", "patch_dropout", "no_ln_pre")

open_clip.add_model_config(ARCHITECTURES)


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build the towers again without open_clip's registry."""

    name: str
    config: dict[str, Any]
    """open_clip's own model config: embed_dim, vision_cfg, text_cfg, quick_gelu."""
    image_mean: tuple[float, ...] = open_clip.OPENAI_DATASET_MEAN
    image_std: tuple[float, ...] = open_clip.OPENAI_DATASET_STD

    @property
    def image_size(self) -> int:
        """Pixels of an image's side; rows and bands of a tile."""
        return int(self.config["vision_cfg"]["image_size"])

    @property
    def context_length(self) -> int:
        """The most tokens that a text may have."""
        return int(self.config["text_cfg"].get("context_length", 77))


def find_architecture(name: str, weights: str | None) -> Architecture:
    """The architecture called `name`, as the pretrained tag `weights` needs it.

    Raises:
        ValueError: there is none of that name, or its image tower isn't a plain VisionTransformer, which is what
            the audio tower is a twin of.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models()) or ["ViT-B-32", "ViT-B-16", "ViT-L-14"]
        raise ValueError(
            f"model.architecture is {name!r}, which is neither an open_clip model, such as {', '.join(near)}, nor a "
            f"file in {ARCHITECTURES}"
        )
    _check_plain(name, config)
    tag = open_clip.get_pretrained_cfg(name, weights) if weights else {}
    if tag.get("quick_gelu"):
        config["quick_gelu"] = True
    return Architecture(
        name,
        config,
        tuple(tag.get("mean") or open_clip.OPENAI_DATASET_MEAN),
        tuple(tag.get("std") or open_clip.OPENAI_DATASET_STD),
    )


def _check_plain(name: str, config: dict[str, Any]) -> None:
    image, text = config["vision_cfg"], config["text_cfg"]
    strange = [f"vision_cfg.{key}" for key in UNSUPPORTED_VISION if image.get(key)]
    strange += ["a ResNet image tower"] * isinstance(image.get("layers"), list)
    strange += ["vision_cfg.pool_type"] * (image.get("pool_type", "tok") != "tok")
    strange += ["vision_cfg.image_size"] * (not isinstance(image.get("image_size", 224), int))
    strange += ["text_cfg.hf_model_name"] * ("hf_model_name" in text)
    strange += [key for key in ("custom_text", "multimodal_cfg", "init_logit_bias") if config.get(key)]
    if strange:
        raise ValueError(
            f"model.architecture {name!r} has {', '.join(strange)}: only CLIP models with a plain VisionTransformer, "
            "pooled by its class token, can initialise an audio tower (ViT-B-32, ViT-B-16, ViT-L-14, ...)"
        )


def build_clip(architecture: Architecture) -> open_clip.CLIP:
    """Text and image tower with open_clip's random initialisation.

    The logit scale has shape (1,), because DeepSpeed takes no parameter without dimensions.
    """
    clip = open_clip.CLIP(**copy.deepcopy(architecture.config), nonscalar_logit_scale=True)
    assert type(clip.visual) is VisionTransformer
    replace_layers(clip)
    return clip


def load_clip_weights(clip: open_clip.CLIP, architecture: Architecture, weights: str) -> None:
    """Fill `clip` from `weights`, the path of a checkpoint or an open_clip pretrained tag.

    Raises:
        ValueError: neither a file nor a tag; a tag whose file can't be downloaded from here, with the file to bring
            and where to name it; or a file that is broken, or whose keys, shapes or values can't be used.
    """
    path = Path(weights)
    if not path.is_file():
        path = _downloaded(architecture.name, weights)
    try:
        state = _read_clip_state(path)
    except Exception as error:
        # a broken file fails in each reader's own way
        reason = str(error).partition("\n")[0]
        raise ValueError(f"model.weights: {path} can't be read as a checkpoint ({reason})") from error
    if "logit_scale" in state:
        state["logit_scale"] = state["logit_scale"].reshape(clip.logit_scale.shape)
    check_state(clip.state_dict(), state, f"model.weights: {path}")
    check_finite(state, f"model.weights: {path}")
    clip.load_state_dict(state)


def find_weights(name: str, weights: str) -> Path | str:
    """The local file of `weights`, a path or a pretrained tag; the address of one that is still to be downloaded.

    Raises:
        ValueError: neither a file nor a tag of the architecture `name`.
    """
    if Path(weights).is_file():
        return Path(weights)
    config = _pretrained_config(name, weights)
    if hub := config.get("hf_hub"):
        repository, _, file = hub.rpartition("/")
        for candidate in [file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]:
            if isinstance(found := try_to_load_from_cache(repository, candidate), str):
                return Path(found)
        return f"https://huggingface.co/{repository}"
    kept = Path("~/.cache/clip").expanduser() / config["url"].rpartition("/")[2]
    return kept if kept.is_file() else str(config["url"])


def _pretrained_config(name: str, tag: str) -> dict[str, Any]:
    """What open_clip knows of a pretrained tag.

    Raises:
        ValueError: there is no such tag of the architecture.
    """
    config: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    if not config:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"model.weights is {tag!r}: there is no such file, nor a tag of {name} (its tags: {tags})")
    return config


def _downloaded(name: str, tag: str) -> Path:
    """The local file of a pretrained tag, downloaded if need be."""
    config = _pretrained_config(name, tag)
    try:
        return Path(download_pretrained(config))
    except Exception as error:
        # hub, network and disk fail in many ways, all with the same cure
        source = config.get("url") or f"https://huggingface.co/{config.get('hf_hub', '').rstrip('/')}"
        raise ValueError(
            f"the weights {tag!r} of {name} can't be downloaded here ({type(error).__name__}: {error}). Bring the "
            f"checkpoint from {source} to this machine and write its path as model.weights in params.yaml"
        ) from error


def _read_clip_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a CLIP checkpoint: safetensors, a state dict, or OpenAI's TorchScript archive; in float32."""
    try:
        state = load_state_dict(str(path))
    except RuntimeError as error:
        if "TorchScript" not in str(error):
            raise
        state = torch.jit.load(path, map_location="cpu").state_dict()
    sizes = {"input_resolution", "context_length", "vocab_size"}
    return {key: value.float() for key, value in state.items() if key not in sizes}


def check_state(expected: dict[str, Tensor], found: dict[str, Tensor], source: str) -> None:
    """Raise a ValueError that names what is missing from `found`, what it has too much, and each differing shape."""
    missing = sorted(expected.keys() - found.keys())
    unused = sorted(found.keys() - expected.keys())
    differing = [
        f"{key} is {tuple(found[key].shape)}, not {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & found.keys())
        if found[key].shape != expected[key].shape
    ]
    faults = [f"it lacks {', '.join(missing)}"] * bool(missing) + [f"it has unknown {', '.join(unused)}"] * bool(unused)
    if faults + differing:
        raise ValueError(f"{source} doesn't fit this model: {'; '.join(faults + differing)}")


def check_finite(tensors: dict[str, Tensor], source: str) -> None:
    """Raise a ValueError that names the tensors of `source` with a NaN or an infinity."""
    wrong = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(f"{source} has weights that aren't finite, in {', '.join(sorted(wrong)[:3])}{more}")


def embed_tokens(clip: open_clip.CLIP, tokens: Tensor) -> Tensor:
    """The input (N, L, W) of the text tower's blocks for `tokens` (N, L): token plus position embeddings.

    Raises:
        ValueError: L is more than the context length.
    """
    length = tokens.shape[1]
    if length > clip.context_length:
        raise ValueError(f"texts of {length} tokens don't fit the text tower, which reads {clip.context_length}")
    dtype = clip.transformer.get_cast_dtype()
    return clip.token_embedding(tokens).to(dtype) + clip.positional_embedding[:length].to(dtype)


def encode_embedded(clip: open_clip.CLIP, embedded: Tensor, places: Tensor | None = None) -> Tensor:
    """Features (N, L, D) of `embedded` (N, L, W), made by `embed_tokens`, or (N, D) at `places` (N,) int64."""
    length = embedded.shape[1]
    hidden = clip.transformer(embedded, attn_mask=clip.attn_mask[:length, :length])
    if places is not None:
        hidden = hidden[torch.arange(len(embedded), device=embedded.device), places]
    return clip.ln_final(hidden) @ clip.text_projection
