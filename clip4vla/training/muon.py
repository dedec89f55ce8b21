"""Muon for the matrices between features, AdamW for everything else.

The momentum of a matrix is replaced by the nearest matrix whose singular values are all 1, so that every direction of
it learns at the same rate (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon). The size of the step is
that of AdamW (Liu et al., arXiv 2502.16982), with which it shares its rates and decay. The nearest matrix is found by
products alone; here for all matrices of a shape at once and in float32, and each rank does its share of them.
torch's Muon does one after the other, in bfloat16, on every rank.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from clip4vla.losses.gather import gather, world

MOMENTUM = 0.95
RMS = 0.2
"""Root mean square of an update before the rate: what AdamW's usually have."""
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of x, x^3 and x^5 in a step towards singular values of 1."""
ITERATIONS = 5
"""Steps; singular values then lie between 0.7 and 1.2."""
NUMBERS_AT_ONCE = 1 << 24
"""Most numbers of matrices that a rank orthogonalises together: 64 MB, several times."""


class Muon(torch.optim.AdamW):
    """Muon for groups whose `matrices` isn't 0, torch's AdamW for the others.

    The gradients must be the same on all ranks, and the weights whole: without ZeRO.

    Args:
        groups: parameter groups; `matrices` is the number of square ones that each weight of the group consists of,
            above each other, such as the 3 of an attention's queries, keys and values, or 0. Default 0.
        settings: of torch's AdamW; rates and decay are Muon's, too.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], **settings: Any) -> None:
        super().__init__([{"matrices": 0, **group} for group in groups], **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of every weight that has a gradient.

        Raises:
            ValueError: there is a closure.
        """
        if closure is not None:
            raise ValueError("Muon takes a step without a closure")
        groups = self.param_groups
        try:
            self.param_groups = [group for group in groups if group["matrices"] == 0]
            super().step()
        finally:
            self.param_groups = groups
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor, float]]] = {}
        for group in groups:
            for weight in group["params"] if group["matrices"] else ():
                if weight.grad is None:
                    continue
                direction = self._direction(weight)
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                parts = (tensor.chunk(group["matrices"]) for tensor in (weight, direction))
                for part, towards in zip(*parts, strict=True):
                    by_shape.setdefault(part.shape, []).append((part, towards, group["lr"]))
        _, ranks = world()
        for shape, steps in by_shape.items():
            at_once = ranks * max(1, NUMBERS_AT_ONCE // shape.numel())
            for start in range(0, len(steps), at_once):
                some = steps[start : start + at_once]
                updates = _shared(torch.stack([towards for _, towards, _ in some]))
                for (part, _, lr), update in zip(some, updates, strict=True):
                    part.add_(update, alpha=-lr * RMS * max(shape) ** 0.5)

    def _direction(self, weight: nn.Parameter) -> Tensor:
        """Nesterov's momentum, of the shape of the weight."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["step"] = torch.zeros(())  # AdamW loads no state without it
            state["momentum"] = torch.zeros_like(weight)
        state["step"] += 1
        state["momentum"].lerp_(weight.grad, 1 - MOMENTUM)
        return weight.grad.lerp(state["momentum"], MOMENTUM)


def _shared(matrices: Tensor) -> Tensor:
    """`orthogonalise` of (N, rows, columns) equal on all ranks, each doing its share."""
    rank, ranks = world()
    share = -(-len(matrices) // ranks)
    own = matrices[rank * share : (rank + 1) * share]
    done = torch.cat([orthogonalise(own), own.new_zeros(share - len(own), *own.shape[1:])])
    return gather(done)[: len(matrices)]


def orthogonalise(matrices: Tensor) -> Tensor:
    """(N, rows, columns) matrices with the singular vectors of the given ones and singular values near 1.

    A matrix of zeros stays one.
    """
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(matrices.dtype).tiny)
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.mT
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if is_tall else x
