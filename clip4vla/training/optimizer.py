"""The optimizer's parameter groups and the learning rate of a step: pure functions of config and model."""

import math
from typing import Any

from torch import nn

from clip4vla.config import OptimizerConfig

NEW_IN_DECODER = ("cross", "memory")
"""In the names of those parameters of the caption decoder that don't come from the text tower."""
ALIGNED = 8
"""Numbers of bf16 that a GPU's products read at once."""


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Groups by rate (text tower, image tower, the rest) and decay (matrices or not), each with its `lr_ratio`.

    Norms, biases, embeddings, class tokens and the logit scale have no decay. The logit scale goes with the texts, and
    so does what the caption decoder has from the text tower; its attention to frames and tiles is new.
    With Muon, matrices between features have groups of their own, see its `matrices`.

    A group begins with weights of whole multiples of 16 bytes in bf16: ZeRO lays its weights one after the other, and
    behind a scalar the fast products of a GPU could read none of them.
    """
    groups: dict[tuple[float, float, int], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            ratio = _ratio(name, config)
            decay = config.weight_decay if _decays(name, parameter) else 0.0
            matrices = _matrices(name, parameter) if config.name == "muon" else 0
            groups.setdefault((ratio, decay, matrices), []).append(parameter)
    return [
        {
            "params": sorted(weights, key=lambda weight: weight.numel() % ALIGNED != 0),
            "lr": config.lr * ratio,
            "lr_ratio": ratio,
            "weight_decay": decay,
            "matrices": matrices,
        }
        for (ratio, decay, matrices), weights in groups.items()
    ]


def _ratio(name: str, config: OptimizerConfig) -> float:
    if name.startswith("clip.visual."):
        return config.video_lr_ratio
    is_copied = name.startswith("decoder.") and not any(part in name for part in NEW_IN_DECODER)
    return config.text_lr_ratio if is_copied or name.startswith("clip.") else 1.0


def _decays(name: str, parameter: nn.Parameter) -> bool:
    # the heads of experts start from the identity, which decay would pull to zero
    without = ("embedding", "memory_type", "experts.")
    return parameter.ndim >= 2 and not any(part in name for part in without)


def _matrices(name: str, parameter: nn.Parameter) -> int:
    """How many matrices between features a weight consists of."""
    if parameter.ndim != 2 or not _decays(name, parameter):
        return 0
    return len(("query", "key", "value")) if name.endswith("in_proj_weight") else 1


def learning_rate(step: int, steps: int, config: OptimizerConfig) -> float:
    """Rate of step `step` (from 0) of `steps`: linear warm-up to `config.lr`, then half a cosine to 0.

    Without warm-up it is the published schedule (BertAdam's `warmup_cosine`). With it, the published cosine begins at
    step 0, so that the rate steps back when the warm-up ends, and its first step has a rate of 0; ours does neither.
    """
    warmup = config.warmup * steps
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    return config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, steps - warmup)))
