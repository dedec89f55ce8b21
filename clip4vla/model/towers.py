"""Text and image tower by the names of open_clip: found, built, filled with weights.

In: the name of an architecture and where its weights are. Out: a `Clip`. open_clip's files describe its architectures;
open_clip itself, which takes seconds to import, is only needed for pretrained weights.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from inspect import getfullargspec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip4vla.model.clip import END_BY_ID, END_BY_NUMBER, Clip, ImageTower
from clip4vla.model.layers import QuickGELU
from clip4vla.utils.files import read_json

ARCHITECTURES = Path(__file__).parent / "architectures"
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Of the pixels of red, green and blue, with which CLIP was trained."""
PARTS = {"embed_dim", "quick_gelu", "vision_cfg", "text_cfg"}
"""Keys of an architecture's config."""


@dataclass(frozen=True)
class Architecture:
    """Everything needed to build the towers again without open_clip's registry."""

    name: str
    config: dict[str, Any]
    """open_clip's own model config: embed_dim, vision_cfg, text_cfg, quick_gelu."""
    image_mean: tuple[float, ...] = OPENAI_MEAN
    image_std: tuple[float, ...] = OPENAI_STD

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
    files = _architecture_files()
    if name not in files:
        near = difflib.get_close_matches(name, files) or ["ViT-B-32", "ViT-B-16", "ViT-L-14"]
        raise ValueError(
            f"model.architecture is {name!r}, which is neither an open_clip model, such as {', '.join(near)}, nor a "
            f"file in {ARCHITECTURES}"
        )
    config = read_json(files[name])
    _check_plain(name, config)
    tag = _pretrained_tag(name, weights) if weights and not Path(weights).is_file() else {}
    if tag.get("quick_gelu"):
        config["quick_gelu"] = True
    return Architecture(name, config, tuple(tag.get("mean") or OPENAI_MEAN), tuple(tag.get("std") or OPENAI_STD))


def open_clip_file(name: str) -> Path:
    """A file or folder of the installed open_clip, which is found without being imported."""
    found = find_spec("open_clip")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / name


@cache
def _architecture_files() -> dict[str, Path]:
    """The file of every architecture by its name."""
    folders = (open_clip_file("model_configs"), ARCHITECTURES)
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.json"))}


def _check_plain(name: str, config: Mapping[str, Any]) -> None:
    image, text = config["vision_cfg"], config["text_cfg"]
    strange = [key for key in config.keys() - PARTS if config[key]]
    strange += [f"vision_cfg.{key}" for key in image.keys() - _settings_of(ImageTower) if image[key]]
    strange += [f"text_cfg.{key}" for key in text.keys() - _settings_of(Clip) if text[key]]
    strange += ["a ResNet image tower"] * isinstance(image.get("layers"), list)
    strange += ["vision_cfg.image_size"] * (not isinstance(image.get("image_size", 224), int))
    strange += ["text_cfg.pool_type"] * (text.get("pool_type", END_BY_NUMBER) not in (END_BY_NUMBER, END_BY_ID))
    if strange:
        raise ValueError(
            f"model.architecture {name!r} has {', '.join(sorted(strange))}: only CLIP models with a plain "
            "VisionTransformer, pooled by its class token, and CLIP's tokens can initialise an audio tower (ViT-B-32, "
            "ViT-B-16, ViT-L-14, ...)"
        )


def _settings_of(tower: type[nn.Module]) -> set[str]:
    return set(getfullargspec(tower.__init__).kwonlyargs)


def build_clip(architecture: Architecture) -> Clip:
    """Text and image tower with random weights."""
    config = architecture.config
    image, text = (
        {key: value for key, value in config[part].items() if key in _settings_of(tower)}
        for part, tower in (("vision_cfg", ImageTower), ("text_cfg", Clip))
    )
    common = (config["embed_dim"], QuickGELU if config.get("quick_gelu") else nn.GELU)
    return Clip(ImageTower(*common, **image), *common, **text)


def load_clip_weights(clip: Clip, architecture: Architecture, weights: str) -> None:
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
    from huggingface_hub import try_to_load_from_cache
    from open_clip.constants import HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME

    config = _require_tag(name, weights)
    if hub := config.get("hf_hub"):
        repository, _, file = hub.rpartition("/")
        for candidate in [file] if file else [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]:
            if isinstance(found := try_to_load_from_cache(repository, candidate), str):
                return Path(found)
        return f"https://huggingface.co/{repository}"
    kept = Path("~/.cache/clip").expanduser() / config["url"].rpartition("/")[2]
    return kept if kept.is_file() else str(config["url"])


def _pretrained_tag(name: str, tag: str) -> dict[str, Any]:
    """What open_clip knows of a pretrained tag of an architecture; nothing where there is no such tag."""
    import open_clip

    found: dict[str, Any] = open_clip.get_pretrained_cfg(name, tag)
    return found


def _require_tag(name: str, tag: str) -> dict[str, Any]:
    """What open_clip knows of a pretrained tag.

    Raises:
        ValueError: there is no such tag of the architecture.
    """
    import open_clip

    if not (found := _pretrained_tag(name, tag)):
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(name)) or "none"
        raise ValueError(f"model.weights is {tag!r}: there is no such file, nor a tag of {name} (its tags: {tags})")
    return found


def _downloaded(name: str, tag: str) -> Path:
    """The local file of a pretrained tag, downloaded if need be."""
    from open_clip.pretrained import download_pretrained

    config = _require_tag(name, tag)
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
    from open_clip.factory import load_state_dict

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
