"""Where the time of a step goes, and the line that a person watches.

In: what happened since the last line. Out: figures for MLflow and `run.json`, and lines of text: one every few steps,
and one whenever a step takes so long that there was none for a while.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from clip4vla.utils.machine import peak_memory
from clip4vla.utils.numbers import format_rate
from clip4vla.utils.progress import LINE_EVERY_S, repeated

LOOK_EVERY_S = LINE_EVERY_S / 4


@dataclass
class _Tally:
    """What has happened since a moment."""

    since: float
    steps: int = 0
    waited_s: float = 0.0
    flops: int = 0

    def add(self, waited_s: float, flops: int) -> None:
        self.steps += 1
        self.waited_s += waited_s
        self.flops += flops

    @property
    def passed_s(self) -> float:
        return max(time.monotonic() - self.since, 1e-9)


class ThroughputMeter:
    """Clips and FLOPs per second, share of time spent waiting for data, and memory.

    Args:
        clips_per_step: over all ranks.
        peak_flops: of this rank's device, None where it isn't known.
    """

    def __init__(self, clips_per_step: int, peak_flops: float | None) -> None:
        self.clips_per_step = clips_per_step
        self.peak_flops = peak_flops
        now = time.monotonic()
        self._recent, self._whole = _Tally(now), _Tally(now)

    def step(self, waited_s: float, flops: int) -> None:
        """One step of `flops` useful FLOPs of this rank is done, `waited_s` seconds of it waiting for its batch."""
        self._recent.add(waited_s, flops)
        self._whole.add(waited_s, flops)

    def read(self) -> dict[str, float]:
        """Figures since the last reading.

        clips_per_second of all ranks; of this one data_wait (share of the time), memory_gb (the peak so far),
        tflops (useful TFLOP/s of its device) and, where the device's peak is known, mfu (their share of it, see
        `clip4vla.training.flops`).
        """
        figures = self._figures(self._recent)
        self._recent = _Tally(time.monotonic())
        return figures

    def read_whole(self) -> dict[str, float]:
        """The same figures over the whole run, the first step's warm-up included."""
        return self._figures(self._whole)

    def _figures(self, tally: _Tally) -> dict[str, float]:
        passed = tally.passed_s
        figures = {
            "clips_per_second": tally.steps * self.clips_per_step / passed,
            "data_wait": tally.waited_s / passed,
            "memory_gb": peak_memory_gb(),
            "tflops": tally.flops / passed / 1e12,
        }
        return figures if self.peak_flops is None else figures | {"mfu": tally.flops / passed / self.peak_flops}

    def eta_s(self, steps_left: int) -> float:
        """Seconds that `steps_left` steps will take, as the run went so far."""
        return steps_left * self._whole.passed_s / max(self._whole.steps, 1)


def peak_memory_gb() -> float:
    """Most memory so far: of the GPU, or the process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    return peak_memory() / 1e9


def line(
    step: int, steps: int, losses: Mapping[str, float], lr: float, figures: Mapping[str, float], eta: float
) -> str:
    """Step, losses, rate, speed, use of the device, memory and time left, on one line."""
    width = len(str(steps))
    terms = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
    mfu = f"  MFU {figures['mfu']:.0%}" if "mfu" in figures else ""
    return (
        f"step {step:{width}d}/{steps}  {terms}  lr {lr:.1e}  {format_rate(figures['clips_per_second'])} clips/s  "
        f"{figures['tflops']:.3g} TFLOP/s{mfu}  data {figures['data_wait']:.0%}  {figures['memory_gb']:.1f} GB  "
        f"ETA {_clock(eta)}"
    )


class StepProgress:
    """The lines of a training: those that are given to it and, while there is none for long, where the step is.

    Args:
        steps: of the training.
        clips_per_step: over all ranks.
        shows: whether this rank prints.
    """

    def __init__(self, steps: int, clips_per_step: int, shows: bool) -> None:
        self.steps = steps
        self.clips_per_step = clips_per_step
        self.shows = shows
        self._printed = self._since = time.monotonic()
        self._step, self._what, self._share = 0, "", 0.0

    def print(self, text: str) -> None:
        """Print a line, on the rank that shows them."""
        self._printed = time.monotonic()
        if self.shows:
            print(text, flush=True)

    def begin(self, step: int) -> None:
        """`step` steps are done, and the next one begins."""
        self._step, self._since = step, time.monotonic()
        self.at("waiting for its clips", 0.0)

    def at(self, what: str, share: float) -> None:
        """The step is at `what`, and `share` of its passes are done."""
        self._what, self._share = what, share

    def line(self) -> str:
        """Where the step is; its speed and the time left as soon as one pass is done."""
        passed = time.monotonic() - self._since
        text = f"in step {self._step + 1}/{self.steps}: {self._what}"
        if not self._share:
            return f"{text}  after {passed:,.0f} s"
        left = passed / self._share * (self.steps - self._step) - passed
        return f"{text}  {format_rate(self._share * self.clips_per_step / passed)} clips/s  ETA {_clock(left)}"

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Inside the block no more than LINE_EVERY_S seconds pass without a line."""

        def look() -> None:
            if time.monotonic() - self._printed >= LINE_EVERY_S - LOOK_EVERY_S:
                self.print(self.line())

        with repeated(look, LOOK_EVERY_S):
            yield


def _clock(seconds: float) -> str:
    """`2:05`, or from an hour on `3:02:05`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes_left = divmod(minutes, 60)
    return f"{hours}:{minutes_left:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
