"""What the loader hands to the towers: one batch of clips as tensors.

Shape legend, here and in every tensor file of the package:
B clips, F frames, H and W pixels, C audio channels (1 or 2), S samples, T audio tiles, R rows and bands of a
tile, K sentences of a clip, L text tokens, D embedding width.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from clip4vla.records import AudioType

AUDIO_TYPE_INDEX: dict[AudioType | None, int] = {"verbal": 0, "nonverbal": 1, None: -1}
"""Row of the type embedding (the published order), -1 where the text has no audio type."""


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
        return Batch(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})
