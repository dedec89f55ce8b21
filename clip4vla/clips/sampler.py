"""Which clips each step holds: a seeded permutation per epoch over one or several data sets.

In: the sizes of the data sets, a seed, a step. Out: indices. The clips of step s are a pure function of (seed, s), so
that a resumed run continues with the very next clips.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class StepSampler:
    """Which clips the batch of a step holds: a fresh permutation per epoch, the last odd clips left out.

    `weights` gives each data set its share of an epoch (None: every clip once).
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...] | None
    batch_size: int
    epochs: int
    seed: int

    @property
    def clips_per_step(self) -> int:
        """`batch_size`, or all clips where there are fewer."""
        return min(self.batch_size, sum(self.sizes))

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in an epoch."""
        return sum(self.sizes) // self.clips_per_step

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.epochs * self.steps_per_epoch

    def indices(self, step: int) -> NDArray[np.int64]:
        """The clips of `step`, over all ranks."""
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self.clips_per_step
        return _permutation(self, epoch)[start : start + self.clips_per_step]

    def quotas(self) -> list[int]:
        """Clips of each data set in an epoch."""
        if self.weights is None:
            return list(self.sizes)
        bounds = np.round(np.cumsum([0.0, *self.weights]) / sum(self.weights) * sum(self.sizes)).astype(int)
        return np.diff(bounds).tolist()


@lru_cache(maxsize=1)
def _permutation(sampler: StepSampler, epoch: int) -> NDArray[np.int64]:
    """The clips of an epoch in their order: 8 bytes a clip, and no more while it is made of one data set."""
    rng = np.random.default_rng((sampler.seed, epoch))
    parts, low = [], 0
    for size, quota in zip(sampler.sizes, sampler.quotas(), strict=True):
        for left in range(quota, 0, -size) if quota else ():
            drawn = rng.permutation(size)[:left]
            drawn += low
            parts.append(drawn)
        low += size
    order = parts[0] if len(parts) == 1 else np.concatenate(parts)
    rng.shuffle(order)
    return order
