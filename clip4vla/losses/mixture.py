"""The likelihood of the right clips under a mixture of experts, exact over ranks.

In: query vectors and weights of texts by expert, expert vectors of clips, and ids that say which match. Out: this
rank's share of the loss over all ranks' texts, with the conventions of `contrastive`. Where InfoNCE on the weighted sum
of cosines lets one expert compensate for another, here each expert ranks the clips by itself, and the weights are the
probabilities that it ranks them right: the term that trains the gate.

Shapes: n texts and b clips of this rank, V valid clips of all ranks, K rows of a block, E experts, M ids of a clip,
D embedding width.
"""

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F  # noqa: N812
from torch.utils.checkpoint import checkpoint

from clip4vla.clips.batch import NO_ID
from clip4vla.losses.gather import gather, world

BLOCK_ROWS = 256


def mixture_nll(
    queries: Tensor,
    weights: Tensor,
    clips: Tensor,
    scale: Tensor,
    *,
    text_ids: Tensor,
    clip_ids: Tensor,
    valid_texts: Tensor | None = None,
    valid_clips: Tensor | None = None,
    expectation: bool = False,
    group: dist.ProcessGroup | None = None,
    block_rows: int = BLOCK_ROWS,
) -> Tensor:
    """Mean over texts of -log sum_e weight_e * softmax_e(right clip), and over the right clips of a text.

    Every rank must join the call, with the same number of clips. Blocks of rows are recomputed in the backward pass, so
    that memory grows with the number of clips, not with its square.

    Args:
        queries: (n, E, D) unit vectors.
        weights: (n, E), not negative, summing to 1.
        clips: (b, E, D) expert vectors.
        scale: (1,) or a scalar that similarities are multiplied with.
        text_ids: (n,) int64, equal for equal captions, on all ranks.
        clip_ids: (b, M) int64, ids of all captions of each clip, padded by `NO_ID`.
        valid_texts: (n,) bool; None means all are True.
        valid_clips: (b,) bool, which clips are compared; None means all are True.
        expectation: take sum_e weight_e * log softmax_e, the expectation of the experts' log likelihoods, in place of
            the log likelihood of their mixture: every expert must then rank right, as far as its weight goes.
        group: the ranks; None is all of them.
        block_rows: rows whose logits are held at once.

    Returns:
        This rank's share, a scalar; 0 with a graph where no text has a right clip.
    """
    keys, key_ids = _gather_clips(_wide(clips), clip_ids, valid_clips, group)
    if valid_texts is None:
        valid_texts = torch.ones(len(queries), dtype=torch.bool, device=queries.device)
    total, count = _wide(queries).new_zeros(()), torch.zeros(1, dtype=torch.int64, device=queries.device)
    with torch.autocast(queries.device.type, enabled=False):
        for start in range(0, len(queries), block_rows):
            rows = slice(start, start + block_rows)
            ids = (text_ids[rows], key_ids, valid_texts[rows])
            vectors = (_wide(queries[rows]), _wide(weights[rows]), keys, _wide(scale))
            loss, asked = checkpoint(_block, *vectors, *ids, expectation, use_reentrant=False)
            total, count = total + loss, count + asked
        everywhere = gather(count, group).sum().clamp(min=1)
        return total / everywhere + 0 * (keys.sum() + scale.sum())


def _wide(values: Tensor) -> Tensor:
    """At least float32."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def _block(
    queries: Tensor,
    weights: Tensor,
    keys: Tensor,
    scale: Tensor,
    text_ids: Tensor,
    key_ids: Tensor,
    valid: Tensor,
    expectation: bool,
) -> tuple[Tensor, Tensor]:
    """Sum of the losses of K texts, and how many of them are valid and have a right clip: the others count 0."""
    right = _matches(text_ids, key_ids) & valid.unsqueeze(1)
    by_expert = F.log_softmax(scale * torch.einsum("ked,ved->kev", queries, keys), dim=2)
    if expectation:
        likelihood = (weights.unsqueeze(2) * by_expert).sum(1)
    else:
        # a weight may be so small that it is 0, whose logarithm has no gradient
        log_weights = weights.clamp(min=torch.finfo(weights.dtype).tiny).log()
        likelihood = torch.logsumexp(by_expert + log_weights.unsqueeze(2), dim=1)
    number = right.sum(1).clamp(min=1)
    return -(torch.where(right, likelihood, 0.0).sum(1) / number).sum(), right.any(1).sum()


def _gather_clips(
    clips: Tensor, clip_ids: Tensor, valid: Tensor | None, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Vectors (V, E, D) with gradient, and ids (V, M'), of the valid clips of all ranks."""
    if valid is None:
        valid = torch.ones(len(clips), dtype=torch.bool, device=clips.device)
    _, ranks = world(group)
    width = torch.tensor([clip_ids.shape[1]], device=clips.device)
    widest = int(gather(width, group).max()) if ranks > 1 else clip_ids.shape[1]
    padded = F.pad(clip_ids, (0, widest - clip_ids.shape[1]), value=NO_ID)
    is_valid = gather(valid.to(torch.uint8), group).bool()
    return gather(clips.contiguous(), group)[is_valid], gather(padded, group)[is_valid]


def _matches(text_ids: Tensor, key_ids: Tensor) -> Tensor:
    """(K, V) bool: which clips have the caption of each text."""
    right = torch.zeros(len(text_ids), len(key_ids), dtype=torch.bool, device=key_ids.device)
    for ids in key_ids.unbind(1):
        right |= text_ids.unsqueeze(1) == ids
    return right
