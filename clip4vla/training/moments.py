"""AdamW for a rank that has too little memory for its moments: they lie in a file.

Moments are half of what a weight takes in training, and a step reads and writes each of them once. Here the file is
mapped into memory, and the moments of one weight at a time are used; what the system holds of the file in its cache, it
can give to others at any time.
The weights are those of torch's AdamW to the last bit.
"""

import mmap
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clip4vla.utils.numbers import format_size

MOMENTS = ("exp_avg", "exp_avg_sq")
"""In the state of a weight."""


class AdamWOnDisk(torch.optim.AdamW):
    """AdamW whose moments lie in a file without a name, which ends with the process.

    Args:
        groups: parameter groups of float32 weights on the CPU.
        directory: where the file is; made if need be.
        settings: of torch's AdamW.

    Raises:
        ValueError: the disk has too little space.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], directory: Path, **settings: Any) -> None:
        super().__init__(groups, **settings)
        directory.mkdir(parents=True, exist_ok=True)
        weights = [weight for group in self.param_groups for weight in group["params"]]
        starts = [0]
        for weight in weights:
            starts += [starts[-1] + len(MOMENTS) * _mapped_bytes(weight)]
        self._maps: dict[nn.Parameter, dict[str, mmap.mmap]] = {}
        with tempfile.TemporaryFile(dir=directory) as file:
            try:
                os.posix_fallocate(file.fileno(), 0, starts[-1])
            except OSError as error:
                raise ValueError(
                    f"{directory} has no space for Adam's moments, which take {format_size(starts[-1])} "
                    f"({error.strerror}): a larger trainer.memory_gb keeps them in memory"
                ) from error
            for weight, start in zip(weights, starts[:-1], strict=True):
                size = _mapped_bytes(weight)
                self._maps[weight] = {
                    name: mmap.mmap(file.fileno(), size, offset=start + index * size)
                    for index, name in enumerate(MOMENTS)
                }

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every weight that has a gradient, one after the other.

        Raises:
            ValueError: there is a closure.
        """
        if closure is not None:
            raise ValueError("AdamWOnDisk takes a step without a closure")
        groups = self.param_groups
        try:
            for group in groups:
                for weight in group["params"]:
                    self.param_groups = [{**group, "params": [weight]}]
                    super().step()
                    self._put_away(weight)
        finally:
            self.param_groups = groups

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's; the moments go to the file."""
        super().load_state_dict(state_dict)
        self.put_away()

    def put_away(self) -> None:
        """Take all moments out of memory, where a reader of `state_dict` has brought them."""
        for weight in self._maps:
            self._put_away(weight)

    def _put_away(self, weight: nn.Parameter) -> None:
        state = self.state.get(weight, {})
        for name, mapped in self._maps[weight].items():
            if name not in state:
                continue
            in_file = torch.frombuffer(mapped, dtype=weight.dtype, count=weight.numel()).view_as(weight)
            if state[name].data_ptr() != in_file.data_ptr():
                state[name] = in_file.copy_(state[name])
            mapped.madvise(mmap.MADV_DONTNEED)  # of a shared file: the numbers stay


def _mapped_bytes(weight: Tensor) -> int:
    """Bytes of one moment in the file, whole pages."""
    return -(-weight.nbytes // mmap.ALLOCATIONGRANULARITY) * mmap.ALLOCATIONGRANULARITY
