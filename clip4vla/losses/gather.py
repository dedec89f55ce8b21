"""Tensors of all ranks, with the gradient going back to the rank that each row came from.

Shapes: b rows of this rank, B of all ranks; every rank has the same b.
"""

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.nn.functional import all_gather as all_gather_with_gradient


def world(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """(rank, number of ranks); (0, 1) where nothing is distributed."""
    if not (dist.is_available() and dist.is_initialized()):
        return 0, 1
    return dist.get_rank(group), dist.get_world_size(group)


def gather(rows: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """(B, ...) rows of all ranks from this rank's (b, ...), in rank order.

    The gradient of a row is the sum of its gradients in the losses of all ranks, so that the sum of the
    ranks' losses is differentiated as one loss. Booleans and integers have none.
    """
    _, size = world(group)
    if size == 1:
        return rows
    if rows.is_floating_point():
        return torch.cat(all_gather_with_gradient(rows.contiguous(), group=group or dist.group.WORLD))
    received = [torch.empty_like(rows) for _ in range(size)]
    dist.all_gather(received, rows.contiguous(), group=group)
    return torch.cat(received)
