"""Random weights in the file format of OpenAI's CLIP: a TorchScript archive, half precision but for a few tensors."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from clip4vla.model.towers import Architecture, build_clip

HALVED = (
    *("conv1.weight", "in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias", "c_fc.weight", "c_fc.bias"),
    *("c_proj.weight", "c_proj.bias", "visual.proj", "text_projection"),
)
"""Ends of the names of the tensors that OpenAI's archives keep in half precision."""


def write_random_weights(architecture: Architecture, path: Path) -> None:
    """Write an archive with the weights of `architecture` as they are initialised."""
    clip = build_clip(architecture)
    state = {name: value.half() if name.endswith(HALVED) else value for name, value in clip.state_dict().items()}
    state["logit_scale"] = state["logit_scale"].reshape(())
    sizes = {
        "input_resolution": architecture.image_size,
        "context_length": architecture.context_length,
        "vocab_size": int(architecture.config["text_cfg"]["vocab_size"]),
    }
    write_openai_archive(state, sizes, path)


def write_openai_archive(state: Mapping[str, Tensor], sizes: Mapping[str, int], path: Path) -> None:
    """Write `state` as the parameters of a TorchScript archive, with `sizes` beside them, as OpenAI's has them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*TorchScript|.*torch.jit", category=DeprecationWarning)
        torch.jit.script(_Archive(state, sizes)).save(str(path))


class _Archive(nn.Module):
    """A tree of modules that do nothing but have parameters of the given names."""

    def __init__(self, state: Mapping[str, Tensor], sizes: Mapping[str, int]) -> None:
        super().__init__()
        for name, value in state.items():
            *path, last = name.split(".")
            module: nn.Module = self
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_parameter(last, nn.Parameter(value))
        for name, size in sizes.items():
            self.register_buffer(name, torch.tensor(size))

    def forward(self) -> int:
        return 0
