"""Muon for the matrices between features, AdamW for everything else.

The momentum of a matrix is replaced by the nearest matrix whose singular values are all 1, so that every direction of
it learns at the same rate (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon). The size of the step is
that of AdamW (Liu et al., arXiv 2502.16982), with which it shares its rates and decay. The nearest matrix is found by
products alone; here for all matrices of a shape at once and in float32, and each rank does its share of them.
torch's Muon does one after the other, in bfloat16, on every rank.
"""

from collections.abc import Callable, Iterable, Sequence
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
        groups: parameter groups; `matrices` is the number of equal ones that each weight of the group consists of,
            above each other, such as the 3 of an attention's queries, keys and values; 0, the default, is AdamW's.
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
            trained = [weight for weight in group["params"] if group["matrices"] and weight.grad is not None]
            if not trained:
                continue
            directions = self._directions(trained)
            torch._foreach_mul_(trained, 1 - group["lr"] * group["weight_decay"])
            for pair in zip(trained, directions, strict=True):
                for weight, direction in zip(*(tensor.chunk(group["matrices"]) for tensor in pair), strict=True):
                    by_shape.setdefault(weight.shape, []).append((weight, direction, group["lr"]))
        for shape, matrices in by_shape.items():
            at_once = world()[1] * max(1, NUMBERS_AT_ONCE // shape.numel())
            for start in range(0, len(matrices), at_once):
                weights, directions, rates = zip(*matrices[start : start + at_once], strict=True)
                updates = _shared(torch.stack(directions))
                updates *= updates.new_tensor(rates)[:, None, None] * RMS * max(shape) ** 0.5
                torch._foreach_sub_(weights, updates.unbind())

    def _directions(self, weights: list[nn.Parameter]) -> Sequence[Tensor]:
        """Nesterov's momentum of each weight."""
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        for weight in weights:
            if not self.state[weight]:
                # AdamW loads no state without a step
                self.state[weight] = {"step": torch.zeros(()), "momentum": torch.zeros_like(weight)}
            self.state[weight]["step"] += 1
        momenta = [self.state[weight]["momentum"] for weight in weights]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        return torch._foreach_lerp(gradients, momenta, MOMENTUM)


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
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=1, dim2=2).add_(a)
        x = factor @ x
    return x.mT if is_tall else x
