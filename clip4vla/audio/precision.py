"""Constants of a computation that must stay exact when the model around it is cast to half precision."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class KeepsPrecision(nn.Module):
    """A module whose own buffers follow it to another device, but never to another number format.

    Engines cast whole models (`model.bfloat16()`); eight bits of mantissa would ruin a filterbank.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, cast in dict(self.named_buffers(recurse=False)).items():
            self._buffers[name] = kept[name].to(cast.device)
        return self
