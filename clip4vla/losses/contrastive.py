"""Contrastive losses over the clips of all ranks, exact in value and gradient.

In: unit vectors of this rank's clips, a scale, and which clips count. Out: this rank's *share* of the global loss:
the sum of the ranks' shares is the loss of the whole batch, as one process would compute it. Whoever averages
gradients over ranks must therefore multiply the loss by their number.

No rank ever holds a whole similarity matrix: it compares its own rows with everyone's, a block of rows at a time, and
turns each block into its gradient at once, so that memory grows with B and not with B squared. The price, on one rank,
is a similarity matrix of its own for each direction: up to half as long again.

Shapes: b clips of this rank, B of all ranks, V of all ranks that are valid, K rows of a block, D embedding width.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable

from clip4vla.losses.gather import gather, world

BLOCK_ROWS = 512


def info_nce(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    *,
    valid: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Tensor:
    """Symmetric InfoNCE between two modalities: the mean of both directions.

    Args:
        a: (b, D) unit vectors.
        b: (b, D) unit vectors, row i being the partner of row i of `a`.
        scale: (1,) or a scalar that similarities are multiplied with.
        valid: (b,) bool; a clip that is False is neither query nor key. None means all are True.
        group: the ranks; None is all of them.
        block_rows: rows whose logits are held at once.

    Returns:
        This rank's share, a scalar; 0 with a graph where no clip of any rank is valid.
    """
    rows = _Rows.of(a, valid, group)
    a, b = _at_least_float32(a), _at_least_float32(b)
    keys_a, keys_b, anchor = _gather_pair(a, b, rows, group)
    a_to_b = _cross_entropy(a[rows.valid], keys_b, rows.place, scale, block_rows)
    b_to_a = _cross_entropy(b[rows.valid], keys_a, rows.place, scale, block_rows)
    return (a_to_b + b_to_a) / (2 * rows.count) + anchor * scale.sum()


def nt_xent(
    audio: Tensor,
    augmented: Tensor,
    scale: Tensor,
    *,
    valid: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Tensor:
    """SimCLR's loss between two views of each clip: a view's negatives are both views of every other clip.

    Arguments and result are those of `info_nce`. Source: Chen et al., arXiv 2002.05709; with scale 100 it is the
    published audio-audio term.
    """
    rows = _Rows.of(audio, valid, group)
    audio, augmented = _at_least_float32(audio), _at_least_float32(augmented)
    keys, keys_view, anchor = _gather_pair(audio, augmented, rows, group)
    itself = rows.place + rows.count
    forth = _cross_entropy(audio[rows.valid], torch.cat([keys_view, keys]), rows.place, scale, block_rows, but=itself)
    back = _cross_entropy(
        augmented[rows.valid], torch.cat([keys, keys_view]), rows.place, scale, block_rows, but=itself
    )
    return (forth + back) / (2 * rows.count) + anchor * scale.sum()


@dataclass(frozen=True)
class _Rows:
    """Which rows count, here and everywhere."""

    valid: Tensor
    """(b,) bool."""
    valid_everywhere: Tensor
    """(B,) bool."""
    place: Tensor
    """int64, where each valid row of this rank stands among the valid ones of all ranks."""
    count: int
    """Valid rows of all ranks, at least 1 to divide by."""

    @staticmethod
    def of(rows: Tensor, valid: Tensor | None, group: dist.ProcessGroup | None) -> "_Rows":
        if valid is None:
            valid = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
        rank, _ = world(group)
        everywhere = gather(valid.to(torch.uint8), group).bool()
        places = everywhere.cumsum(0) - 1
        here = slice(rank * len(rows), (rank + 1) * len(rows))
        return _Rows(valid, everywhere, places[here][valid], max(int(everywhere.sum()), 1))


def _cross_entropy(
    queries: Tensor, keys: Tensor, target: Tensor, scale: Tensor, block_rows: int, but: Tensor | None = None
) -> Tensor:
    """Sum over queries of the cross entropy between scaled similarities and the target's place, block by block.

    `but` is the key that each query must not see, itself.
    """
    with torch.autocast(queries.device.type, enabled=False):
        total: Tensor = _BlockwiseCrossEntropy.apply(queries, keys, scale.to(queries.dtype), target, but, block_rows)
    return total


class _BlockwiseCrossEntropy(torch.autograd.Function):
    """Cross entropy whose gradient is computed along with it, while a block's logits are there."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, keys: Tensor, scale: Tensor, target: Tensor, but: Tensor | None, block_rows: int
    ) -> Tensor:
        total = queries.new_zeros(())
        toward_keys = torch.empty_like(queries)
        keys_gradient = torch.zeros_like(keys)
        for start in range(0, len(queries), block_rows):
            block = slice(start, start + block_rows)
            hidden = None if but is None else but[block]
            loss, excess = _loss_and_excess(scale * (queries[block] @ keys.T), target[block], hidden)
            total += loss
            toward_keys[block] = excess @ keys
            keys_gradient.addmm_(excess.T, scale * queries[block])
        scale_gradient = (queries * toward_keys).sum().expand_as(scale)
        ctx.save_for_backward(scale * toward_keys, keys_gradient, scale_gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return *(gradient * saved for saved in ctx.saved_tensors), None, None, None


def _loss_and_excess(logits: Tensor, target: Tensor, but: Tensor | None) -> tuple[Tensor, Tensor]:
    """Summed cross entropy of (K, V) logits, and its gradient by them: softmax less the target's one. In place."""
    if but is not None:
        logits.scatter_(1, but.unsqueeze(1), -torch.inf)
    right = logits.gather(1, target.unsqueeze(1))
    normalizer = logits.logsumexp(1, keepdim=True)
    excess = logits.sub_(normalizer).exp_()
    excess.scatter_add_(1, target.unsqueeze(1), torch.full_like(right, -1.0))
    return (normalizer - right).sum(), excess


def _gather_pair(a: Tensor, b: Tensor, rows: _Rows, group: dist.ProcessGroup | None) -> tuple[Tensor, Tensor, Tensor]:
    """The valid rows of `a` and `b` on all ranks, (V, D) each, and a 0 that depends on the gathering.

    The 0 must be part of the loss: going back through the gathering is an exchange that every rank has to join, a
    rank without a valid clip too. Both tensors travel in one such exchange, so that ranks can't disagree on an order.
    """
    everything = gather(torch.cat([a, b], dim=1), group)
    keys_a, keys_b = everything[rows.valid_everywhere].chunk(2, dim=1)
    return keys_a, keys_b, everything.sum() * 0


def _at_least_float32(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
