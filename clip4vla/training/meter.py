"""Where the time of a step goes, and the line that a person watches.

In: what happened since the last line. Out: figures for MLflow and `run.json`, and one line of text.
"""

import resource
import sys
import time
from collections.abc import Mapping

import torch


class Meter:
    """Clips per second, share of time spent waiting for data, and memory, since the last reading."""

    def __init__(self, clips_per_step: int) -> None:
        self.clips_per_step = clips_per_step
        self._start = self._last = time.monotonic()
        self._steps = self._steps_in_all = 0
        self._waited = 0.0

    def step(self, waited_s: float) -> None:
        """One step is done, `waited_s` seconds of it waiting for its batch."""
        self._steps += 1
        self._steps_in_all += 1
        self._waited += waited_s

    def read(self) -> dict[str, float]:
        """Figures since the last reading; memory is the peak so far."""
        now = time.monotonic()
        passed = max(now - self._last, 1e-9)
        figures = {
            "clips_per_second": self._steps * self.clips_per_step / passed,
            "data_wait": self._waited / passed,
            "memory_gb": peak_memory_gb(),
        }
        self._last, self._steps, self._waited = now, 0, 0.0
        return figures

    @property
    def mean_clips_per_second(self) -> float:
        """Over the whole run, the first step's warm-up included."""
        return self._steps_in_all * self.clips_per_step / max(time.monotonic() - self._start, 1e-9)

    def eta_s(self, steps_left: int) -> float:
        """Seconds that `steps_left` steps will take, as the run went so far."""
        return steps_left * (time.monotonic() - self._start) / max(self._steps_in_all, 1)


def peak_memory_gb() -> float:
    """Most memory so far: of the GPU, or the process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


def line(
    step: int, steps: int, losses: Mapping[str, float], lr: float, figures: Mapping[str, float], eta: float
) -> str:
    """Step, losses, rate, speed, memory and time left, on one line."""
    width = len(str(steps))
    terms = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
    minutes, seconds = divmod(round(eta), 60)
    return (
        f"step {step:{width}d}/{steps}  {terms}  lr {lr:.1e}  {figures['clips_per_second']:,.0f} clips/s  "
        f"data {figures['data_wait']:.0%}  {figures['memory_gb']:.1f} GB  ETA {minutes}:{seconds:02d}"
    )
