"""What the loader hands to the towers: one batch of clips as tensors.

Shape legend, here and in every tensor file of the package:
B clips, F frames, H and W pixels, C audio channels (1 or 2), S samples, T audio tiles, R rows and bands of a
tile, K captions of a clip, M all captions of a clip, L text tokens, D embedding width.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from clip4vla.records import AudioType

AUDIO_TYPE_INDEX: dict[AudioType | None, int] = {"verbal": 0, "nonverbal": 1, None: -1}
"""Row of the type embedding (the published order), -1 where the text has no audio type."""
NO_ID = -1
"""Pads the ids of a clip that has fewer captions than others; no caption has it."""


@dataclass(frozen=True)
class Batch:
    """B clips. A clip without an audio track has `samples == 0`; no other sound is ever put in its place."""

    clip_ids: tuple[str, ...]
    frames: Tensor
    """(B, F, 3, H, W) uint8 RGB."""
    video_mask: Tensor
    """(B, F) bool, True where there is a frame."""
    waveform: Tensor
    """(B, C, S) float32 in -1..1, zero after the clip's end."""
    samples: Tensor
    """(B,) int64, samples that are sound."""
    tokens: Tensor
    """(B, K, L) int64 text tokens."""
    audio_types: Tensor
    """(B,) int64, see AUDIO_TYPE_INDEX."""
    text_ids: Tensor | None = None
    """(B, K) int64, equal for equal captions; None where a training does not compare them."""
    clip_text_ids: Tensor | None = None
    """(B, M) int64, ids of all captions of each clip, padded by NO_ID; None likewise."""
    shared: Tensor | None = None
    """(B, K) bool, captions that other clips of the data set have, too; None where those are not trained apart."""

    def __len__(self) -> int:
        return len(self.clip_ids)

    def to(self, device: torch.device) -> "Batch":
        """The batch with every tensor on `device`."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, from where it is copied to a GPU while that computes."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {name: change(value) for name, value in values.items() if isinstance(value, Tensor)}
        return Batch(**values)

    def __getitem__(self, rows: slice) -> "Batch":
        """The clips of `rows`, as views."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        values = {name: value if value is None else value[rows] for name, value in values.items()}
        return Batch(**values)
