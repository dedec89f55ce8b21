"""How far our numbers are from the published ones, and how far they may be.

In: two tensors and a tolerance. Out: the element that uses most of what it is allowed.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tolerance:
    """How far a number may be from the published x: `absolute`, or `relative * |x|` where that is more."""

    absolute: float
    relative: float = 0.0


EXACT = Tolerance(0.0)


@dataclass(frozen=True)
class Deviation:
    """One comparison."""

    group: str
    name: str
    """What was compared."""
    value: float
    """Distance at the worst element; infinite where shapes differ or a number isn't finite."""
    tolerance: float
    """What that element is allowed."""

    @property
    def holds(self) -> bool:
        """Whether everything compared is within its tolerance."""
        return self.value <= self.tolerance

    @property
    def share(self) -> float:
        """The part of the tolerance that is used; more than 1 is too much."""
        if self.value == 0:
            return 0.0
        return self.value / self.tolerance if self.tolerance else math.inf


def deviation(group: str, name: str, ours: Tensor, published: Tensor, tolerance: Tolerance) -> Deviation:
    """Compare two tensors of any real type and the same shape."""
    if ours.shape != published.shape:
        shapes = f"{tuple(ours.shape)} here, {tuple(published.shape)} published"
        return Deviation(group, f"shape of {name}: {shapes}", math.inf, tolerance.absolute)
    a, b = ours.detach().double().flatten(), published.detach().double().flatten()
    finite = a.isfinite() & b.isfinite()
    error = torch.where(finite, (a - b).abs(), math.inf)
    allowed = torch.where(finite, (tolerance.relative * b.abs()).clamp(min=tolerance.absolute), 0.0)
    if not len(error):
        return Deviation(group, name, 0.0, tolerance.absolute)
    worst = torch.where(error == 0, 0.0, error / allowed).argmax()
    return Deviation(group, name, float(error[worst]), float(allowed[worst]))


def summary(deviations: Iterable[Deviation], groups: Iterable[str]) -> dict[str, dict[str, Any]]:
    """By group the comparison that uses most of its tolerance, and whether all hold.

    A group in which there was nothing to compare has nulls, and so has a deviation that isn't a finite number.
    """
    found: dict[str, list[Deviation]] = {group: [] for group in groups}
    for one in deviations:
        found[one.group].append(one)
    return {group: _summary(several) for group, several in found.items()}


def _summary(deviations: list[Deviation]) -> dict[str, Any]:
    if not deviations:
        return {"compared": 0, "deviation": None, "tolerance": None, "at": None, "holds": None}
    worst = max(deviations, key=lambda one: one.share)
    return {
        "compared": len(deviations),
        "deviation": float(f"{worst.value:.3g}") if math.isfinite(worst.value) else None,
        "tolerance": float(f"{worst.tolerance:.3g}"),
        "at": worst.name,
        "holds": all(one.holds for one in deviations),
    }
