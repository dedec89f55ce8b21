"""The learning rate's course, where ours is the published one: half a cosine over all steps, without warm-up.

With warm-up the published cosine isn't re-based, and falls from 1 when the warm-up ends; ours is: see
`docs/differences.md`.
"""

import re
from collections.abc import Iterator

import torch

from benchmarks.parity.deviation import Deviation, Tolerance, deviation
from benchmarks.parity.reference import Arrays
from clip4vla.config import OptimizerConfig
from clip4vla.training.optimizer import learning_rate

GROUPS = ("schedule",)
FACTOR = Tolerance(1e-6)
STEPS = 1_000_000
"""Of a training long enough that each progress is a step of it."""
WITHOUT_WARMUP = OptimizerConfig(lr=1.0, warmup=0.0)


def check(arrays: Arrays) -> Iterator[Deviation]:
    """The published factors from the end of their warm-up on."""
    for key in arrays:
        if match := re.fullmatch(r"sched/warmup_cosine_([\d.]+)", key):
            progress = arrays["sched/progress"]
            after = progress >= float(match[1])
            steps = [round(float(x) * STEPS) for x in progress[after]]
            ours = torch.tensor([learning_rate(step, STEPS, WITHOUT_WARMUP) for step in steps])
            yield deviation("schedule", key, ours, arrays[key][after], FACTOR)
