"""A checkpoint read and written again: the same to the last bit, and at full size the same keys."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.parity.deviation import EXACT, Deviation, deviation
from benchmarks.parity.model import HEADS, Models
from clip4vla.model.published import PUBLISHED_AUDIO, Published, from_published, to_published

GROUPS = ("checkpoint",)
UNTRAINED = ("cross.", "cls.")
"""What pretraining saves untrained, and this model leaves out."""


def check(models: Models, full_size: Mapping[str, Any]) -> Iterator[Deviation]:
    """The checkpoint itself, the one with a head on its cross encoder, and those of ViT-B/32."""
    if models.checkpoint:
        trained = {key: value for key, value in models.checkpoint.items() if not key.startswith(UNTRAINED)}
        yield from _same("", trained, models.pretrained)
    if all(f"retr/{key}" in models.arrays for key in HEADS):
        yield from _same("fine-tuned ", models.finetuned_state, models.finetuned)
    for kind, index in full_size.items():
        yield _same_keys(kind, index)


def _same(which: str, state: Mapping[str, Tensor], published: Published) -> Iterator[Deviation]:
    """The bytes of each tensor; its number format counts as its shape."""
    written = to_published(published.model)
    nothing = torch.empty(0)
    for key in sorted(written.keys() | state.keys()):
        ours, theirs = (_bytes(tensors.get(key, nothing)) for tensors in (written, state))
        yield deviation("checkpoint", f"bytes of {which}{key}", ours, theirs, EXACT)


def _bytes(tensor: Tensor) -> Tensor:
    """uint8, with one more axis than the tensor, as long as a number's bytes."""
    return tensor.detach().contiguous().unsqueeze(-1).view(torch.uint8)


def _same_keys(kind: str, index: Mapping[str, Any]) -> Deviation:
    """How many keys of a checkpoint come back with another shape or number format, or not at all."""
    state = {key: torch.empty(shape, dtype=getattr(torch, kept), device="meta") for key, (shape, kept) in index.items()}
    with torch.device("meta"):
        published = from_published(state, PUBLISHED_AUDIO, f"the ViT-B/32 checkpoint {kind}")
        written = to_published(published.model)
    expected = {key: value for key, value in state.items() if key not in published.unused}
    differing = [
        key
        for key in sorted(written.keys() | expected.keys())
        if key not in written or key not in expected or not _alike(written[key], expected[key])
    ]
    name = f"keys of ViT-B/32 after {kind}: {', '.join(differing) or 'all'}"
    return deviation("checkpoint", name, torch.tensor(len(differing)), torch.tensor(0), EXACT)


def _alike(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype
