"""Contrastive losses over the clips of all ranks, exact in value and gradient.

In: unit vectors of this rank's rows, a scale, which rows count, and ids that say which rows match. Out: this rank's
*share* of the global loss: the sum of the ranks' shares is the loss of all rows, as one process would compute it.
Gradients are those of that sum, provided that every rank differentiates its share times the same factor. Code that
averages gradients over ranks must therefore multiply the loss by their number.

No rank ever holds a similarity matrix: it compares its own queries with the keys of all ranks, a square block at a
time, and needs memory for B rows, not for B squared. Both directions share the blocks and their exponentials: the
forward pass reduces each to its part of the logsumexp of its rows and columns; the backward pass computes it again and
turns it into the gradient of both directions. That is four products of the size of the similarity matrix, where a loss
that stores the matrix needs three, and passes over it many times. The positives need no pass over blocks: see
`_Positives`.

Shapes: n queries and b keys of this rank, N valid queries of this rank, V valid keys of all ranks, M ids of a key, U
distinct ids, E pairs of an id and a key that has it, D embedding width.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist
from torch.autograd.function import once_differentiable
from torch.nn import functional as F  # noqa: N812

from clip4vla.clips.batch import NO_ID
from clip4vla.losses.gather import gather, world

BLOCK_SIZES = {"cpu": 512, "cuda": 4096}
"""Default side of a block by device: cache of a CPU's core, launches on a GPU."""


def info_nce(
    a: Tensor,
    b: Tensor,
    scale: Tensor,
    *,
    valid: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    block_size: int | None = None,
) -> Tensor:
    """Symmetric InfoNCE between two modalities: the mean of both directions.

    Every rank must join the call, with the same number of rows.

    Args:
        a: (b, D) unit vectors, of any floating dtype; computed in float32 or, if an input is float64, in float64.
        b: (b, D) unit vectors, row i being the partner of row i of `a`.
        scale: (1,) or a scalar that similarities are multiplied with.
        valid: (b,) bool; a clip that is False is neither query nor key. None means all are True.
        group: the ranks; None is all of them.
        block_size: rows and columns of the logits that are held at once; None: `BLOCK_SIZES`.

    Returns:
        This rank's share, a scalar; 0 with a graph where no clip of any rank is valid.

    Raises:
        ValueError: shapes don't fit.
    """
    _check_shape("b", b, tuple(a.shape))
    rank, _ = world(group)
    ids = torch.arange(len(a), device=a.device) + rank * len(a)
    here = _Labels.of(ids, ids.unsqueeze(1), valid, valid)
    return _symmetric(a, b, scale, here, group, block_size)


def multi_positive_info_nce(
    texts: Tensor,
    clips: Tensor,
    scale: Tensor,
    *,
    text_ids: Tensor,
    clip_ids: Tensor,
    valid_texts: Tensor | None = None,
    valid_clips: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    block_size: int | None = None,
) -> Tensor:
    """Symmetric InfoNCE where a text is right for every clip, of all ranks, that has its sentence.

    Text i and clip j are positives if `text_ids[i]` is among `clip_ids[j]`. Keys are all valid rows of the other
    side, queries those valid rows with a positive among them. A query's loss is the mean of -log softmax over its
    positives, a direction's the mean over its queries. So a valid text whose own clip is invalid is a query only where
    another valid clip has its sentence, but remains a negative for all others; `valid_texts` leaves it out altogether.
    With one positive a row and the same valid rows on both sides this is `info_nce`.

    Every rank must join the call, with the same number of texts and of clips; M may differ.

    Args:
        texts: (n, D) unit vectors, for example of several sentences a clip, flattened.
        clips: (b, D) unit vectors.
        scale: (1,) or a scalar that similarities are multiplied with.
        text_ids: (n,) int64, equal for equal sentences, on all ranks.
        clip_ids: (b, M) int64, ids of all sentences of each clip, padded by `NO_ID`; repeated ids count once.
        valid_texts: (n,) bool; None means all are True.
        valid_clips: (b,) bool; None means all are True.
        group: the ranks; None is all of them.
        block_size: rows and columns of the logits that are held at once; None: `BLOCK_SIZES`.

    Returns:
        This rank's share, a scalar; 0 with a graph where no text has a positive.

    Raises:
        ValueError: shapes don't fit.
    """
    _check_shape("clips", clips, (len(clips), texts.shape[-1]))
    _check_shape("text_ids", text_ids, (len(texts),))
    _check_shape("clip_ids", clip_ids, (len(clips), clip_ids.shape[-1]))
    here = _Labels.of(text_ids, clip_ids, valid_texts, valid_clips)
    return _symmetric(texts, clips, scale, here, group, block_size)


def nt_xent(
    audio: Tensor,
    augmented: Tensor,
    scale: Tensor,
    *,
    valid: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
    block_size: int | None = None,
) -> Tensor:
    """SimCLR's loss between two views of each clip: a view's negatives are both views of every other clip.

    Arguments, result and errors are those of `info_nce`. Source: Chen et al., arXiv 2002.05709; with scale 100 it is
    the published audio-audio term.
    """
    _check_shape("augmented", augmented, tuple(audio.shape))
    rank, _ = world(group)
    views = torch.cat([audio, augmented])
    ids = torch.arange(len(views), device=views.device) + rank * len(views)
    valid = None if valid is None else valid.repeat(2)
    here = _Labels.of(ids, ids.roll(len(audio)).unsqueeze(1), valid, valid)
    # similarities are symmetric: as a key, a view has the gradient that it has as a query
    twice_differentiated = 2 * views - views.detach()
    return _symmetric(twice_differentiated, views.detach(), scale, here, group, block_size, hide_self=True)


def _symmetric(
    queries: Tensor,
    keys: Tensor,
    scale: Tensor,
    here: "_Labels",
    group: dist.ProcessGroup | None,
    block_size: int | None,
    *,
    hide_self: bool = False,
) -> Tensor:
    """This rank's share of the mean of both directions; with `hide_self` keys are the queries and never their own."""
    everywhere = here.of_all_ranks(group)
    dtype = torch.promote_types(torch.promote_types(queries.dtype, keys.dtype), torch.float32)
    queries = _select(queries.to(dtype), here.valid_queries)
    keys = _select(gather(keys.to(dtype), group), everywhere.valid_keys)
    positives = _Positives.of(here.queries(), everywhere.queries(), everywhere.keys(), dtype)
    self_offset = None
    if hide_self:
        rank, _ = world(group)
        self_offset = int(everywhere.valid_keys[: rank * len(here.valid_keys)].sum())
    side = block_size or BLOCK_SIZES.get(queries.device.type, BLOCK_SIZES["cuda"])
    share: Tensor = _Contrast.apply(queries, keys, scale.to(dtype), positives, side, self_offset, group)
    return share


@dataclass(frozen=True)
class _Labels:
    """What decides which rows are compared and which match."""

    query_ids: Tensor
    """(n,) int64."""
    key_ids: Tensor
    """(b, M) int64."""
    valid_queries: Tensor
    """(n,) bool."""
    valid_keys: Tensor
    """(b,) bool."""

    @staticmethod
    def of(query_ids: Tensor, key_ids: Tensor, valid_queries: Tensor | None, valid_keys: Tensor | None) -> "_Labels":
        return _Labels(query_ids, key_ids, _mask(valid_queries, query_ids), _mask(valid_keys, key_ids))

    def of_all_ranks(self, group: dist.ProcessGroup | None) -> "_Labels":
        """Those of all ranks in rank order, in one exchange after one of M."""
        n, b = len(self.query_ids), len(self.key_ids)
        width = int(gather(self.query_ids.new_tensor([self.key_ids.shape[1]]), group).max())
        key_ids = F.pad(self.key_ids, (0, width - self.key_ids.shape[1]), value=NO_ID)
        mine = torch.cat([self.query_ids, self.valid_queries, key_ids.flatten(), self.valid_keys])
        parts = gather(mine.unsqueeze(0), group).split([n, n, b * width, b], dim=1)
        query_ids, valid_queries, key_ids, valid_keys = (part.flatten() for part in parts)
        return _Labels(query_ids, key_ids.view(len(valid_keys), width), valid_queries.bool(), valid_keys.bool())

    def queries(self) -> Tensor:
        """(N,) ids of the valid ones."""
        return self.query_ids[self.valid_queries]

    def keys(self) -> Tensor:
        """(V, M) ids of the valid ones."""
        return self.key_ids[self.valid_keys]


def _mask(valid: Tensor | None, ids: Tensor) -> Tensor:
    """(n,) bool; without a mask every row of `ids` is valid."""
    if valid is None:
        return ids.new_ones(len(ids), dtype=torch.bool)
    _check_shape("the mask of valid rows", valid, (len(ids),))
    return valid.bool()


@dataclass(frozen=True)
class _Positives:
    """How much each row counts, and which pairs of rows match.

    All queries with one id have the same positives. So pairs of rows are never listed, though there may be N x V of
    them: what is listed is each query's id, and the pairs of an id and a key that has it.
    """

    row_weights: Tensor
    """(N,) weight of each query in the loss, 0 without a positive."""
    column_weights: Tensor
    """(V,) likewise of each key as a query of the other direction."""
    query_id: Tensor
    """(N,) int64 in [0, U), each query's id as its place among the distinct ones of this rank's queries."""
    pair_id: Tensor
    """(E,) int64 in [0, U)."""
    pair_key: Tensor
    """(E,) int64 in [0, V)."""
    pair_weight: Tensor
    """(E,) weight, in both directions together, of the similarity of each query with that id to that key."""

    @staticmethod
    def of(mine: Tensor, queries: Tensor, keys: Tensor, dtype: torch.dtype) -> "_Positives":
        """From the ids of valid rows: of this rank's queries, of all ranks' queries, and (V, M) of all ranks' keys."""
        listed = _distinct_in_rows(keys)
        distinct, repeats = queries.unique(return_counts=True)
        pair_id, pair_key = _join(distinct, *listed)
        positives_of_key = keys.new_zeros(len(keys)).index_add_(0, pair_key, repeats[pair_id])
        row = _half_mean(repeats[pair_id.unique()].sum(), dtype)
        column = _half_mean((positives_of_key > 0).sum(), dtype)

        distinct, query_id = mine.unique(return_inverse=True)
        pair_id, pair_key = _join(distinct, *listed)
        positives_of_id = torch.bincount(pair_id, minlength=len(distinct))
        return _Positives(
            row_weights=row * (positives_of_id[query_id] > 0),
            column_weights=column * (positives_of_key > 0),
            query_id=query_id,
            pair_id=pair_id,
            pair_key=pair_key,
            pair_weight=row / positives_of_id[pair_id] + column / positives_of_key[pair_key],
        )

    def toward_keys(self, keys: Tensor) -> Tensor:
        """(N, D): for each query the weighted sum of its positives among `keys` (V, D)."""
        return _sums(keys, self.pair_key, self.pair_weight, self.pair_id, len(self.query_id))[self.query_id]

    def toward_queries(self, queries: Tensor) -> Tensor:
        """(V, D): for each key the weighted sum of its positives among `queries` (N, D)."""
        every = torch.arange(len(queries), device=queries.device)
        by_id = _sums(queries, every, torch.ones_like(self.row_weights), self.query_id, len(queries))
        return _sums(by_id, self.pair_id, self.pair_weight, self.pair_key, len(self.column_weights))


def _distinct_in_rows(ids: Tensor) -> tuple[Tensor, Tensor]:
    """(E,) ids and (E,) rows of a (V, M) table: each id once a row, without `NO_ID`."""
    ids, _ = ids.sort(dim=1)
    counts = ids != NO_ID
    counts[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    return ids[counts], counts.nonzero()[:, 0]


def _join(distinct: Tensor, ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The pairs of `ids` and `rows`, (E,) each, whose id is in the sorted (U,) `distinct`: its place there, the row."""
    known = torch.isin(ids, distinct)
    return torch.searchsorted(distinct, ids[known]), rows[known]


def _sums(rows: Tensor, chosen: Tensor, weights: Tensor, bags: Tensor, size: int) -> Tensor:
    """(size, D): at place k the sum of the `chosen` rows, times their `weights`, whose bag is k; (E,) each."""
    bags, order = bags.sort(stable=True)
    starts = torch.searchsorted(bags, torch.arange(size, device=bags.device))
    return F.embedding_bag(chosen[order], rows, starts, mode="sum", per_sample_weights=weights[order])


def _half_mean(count: Tensor, dtype: torch.dtype) -> Tensor:
    """Weight of one of `count` queries in the mean of a direction, which is half of the loss."""
    return 0.5 / count.clamp(min=1).to(dtype)


@dataclass(frozen=True)
class _Logits:
    """The scaled similarities of (N, D) queries and (V, D) keys, of which only a block is held at a time."""

    queries: Tensor
    keys: Tensor
    scale: float
    side: int
    """Rows and columns of a block."""
    self_offset: int | None
    """Where the queries start among the keys, if they are keys themselves and must be hidden from themselves."""

    def rows(self) -> Iterator[slice]:
        """Which queries the blocks have, from top to bottom."""
        return _slices(len(self.queries), self.side)

    def columns(self) -> Iterator[slice]:
        """Which keys the blocks have, from left to right."""
        return _slices(len(self.keys), self.side)

    def buffer(self) -> Tensor:
        """Memory for one block."""
        return self.queries.new_empty(min(self.side, len(self.queries)) * min(self.side, len(self.keys)))

    def block(self, rows: slice, columns: slice, buffer: Tensor) -> Tensor:
        """A block, written to `buffer`."""
        logits = _view(buffer, rows, columns)
        torch.addmm(logits, self.queries[rows], self.keys[columns].T, beta=0, alpha=self.scale, out=logits)
        if self.self_offset is not None:
            itself = logits.diagonal(self.self_offset + rows.start - columns.start)
            itself.fill_(torch.finfo(logits.dtype).min)  # not -inf, which makes NaN of a block with nothing else
        return logits


def _slices(length: int, side: int) -> Iterator[slice]:
    return (slice(start, min(start + side, length)) for start in range(0, length, side))


def _view(buffer: Tensor, rows: slice, columns: slice) -> Tensor:
    """The beginning of a buffer as a matrix of that many rows and columns."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    return buffer[: height * width].view(height, width)


class _Contrast(torch.autograd.Function):
    """Weighted logsumexps of all rows and columns of the logits, less the weighted logits of the positives."""

    @staticmethod
    def forward(
        ctx: Any,
        queries: Tensor,
        keys: Tensor,
        scale: Tensor,
        positives: _Positives,
        side: int,
        self_offset: int | None,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        with torch.autocast(queries.device.type, enabled=False):
            rows, columns, ctx.shifts = _logsumexps(_Logits(queries, keys, scale.item(), side, self_offset))
            columns = gather(columns.unsqueeze(0), group).logsumexp(0)
            toward_keys = positives.toward_keys(keys)
            right = (queries * toward_keys).sum(1)
        ctx.save_for_backward(queries, keys, scale, rows, columns, toward_keys)
        ctx.positives, ctx.side, ctx.self_offset = positives, side, self_offset
        _, ranks = world(group)
        # a small loss is the difference of large sums: in float64
        normalizers = _weighted_sum(positives.row_weights, rows)
        normalizers += _weighted_sum(positives.column_weights, columns) / ranks
        return (normalizers - scale.double().squeeze() * right.double().sum()).to(queries.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        queries, keys, scale, rows, columns, toward_keys = ctx.saved_tensors
        with torch.autocast(queries.device.type, enabled=False):
            logits = _Logits(queries, keys, scale.item(), ctx.side, ctx.self_offset)
            by_queries = -toward_keys
            by_keys = ctx.positives.toward_queries(queries).neg_() if ctx.needs_input_grad[1] else None
            rows, columns = rows - ctx.positives.row_weights.log(), columns - ctx.positives.column_weights.log()
            _add_gradients(logits, ctx.shifts, rows, columns, by_queries, by_keys)
        by_scale = (gradient * (queries * by_queries).sum()).expand_as(scale)
        factor = gradient * scale.squeeze()
        by_keys = None if by_keys is None else by_keys.mul_(factor)
        return by_queries.mul_(factor), by_keys, by_scale, None, None, None, None


def _weighted_sum(weights: Tensor, values: Tensor) -> Tensor:
    """In float64; values with weight 0 may be infinite."""
    chosen = weights > 0
    return (weights[chosen].double() * values[chosen].double()).sum()


def _logsumexps(logits: _Logits) -> tuple[Tensor, Tensor, list[float | None]]:
    """(N,) over each row, (V,) over each column, and the shift of each block, row by row, see `_reduce`."""
    over_rows, over_columns = (side.new_full((len(side),), -torch.inf) for side in (logits.queries, logits.keys))
    buffer, second = logits.buffer(), logits.buffer()
    shifts = []
    for rows in logits.rows():
        for columns in logits.columns():
            block = logits.block(rows, columns, buffer)
            of_rows, of_columns, shift = _reduce(block, _view(second, rows, columns))
            over_rows[rows] = torch.logaddexp(over_rows[rows], of_rows)
            over_columns[columns] = torch.logaddexp(over_columns[columns], of_columns)
            shifts.append(shift)
    return over_rows, over_columns, shifts


def _reduce(block: Tensor, exponentials: Tensor) -> tuple[Tensor, Tensor, float | None]:
    """Logsumexp of a block over its rows and over its columns, and its shift; `exponentials` is memory for them.

    Rows and columns share the exponentials of the logits less the shift, which is the largest of them. It is None where
    the number format spans too little for that: then some row or column would lose what counts in it.
    """
    largest = block.amax()
    torch.sub(block, largest, out=exponentials).exp_()
    of_rows, of_columns = exponentials.sum(1), exponentials.sum(0)
    shift, *faintest = torch.stack([largest, of_rows.amin(), of_columns.amin()]).tolist()
    limits = torch.finfo(block.dtype)
    # a sum has lost what is below `tiny` in each of its terms
    if min(faintest) < max(block.shape) * limits.tiny / limits.eps:
        return block.logsumexp(1), block.logsumexp(0), None
    return of_rows.log_().add_(largest), of_columns.log_().add_(largest), shift


def _add_gradients(
    logits: _Logits,
    shifts: list[float | None],
    over_rows: Tensor,
    over_columns: Tensor,
    by_queries: Tensor,
    by_keys: Tensor | None,
) -> None:
    """Add the gradients of weighted logsumexps, divided by the scale, to (N, D) and, where needed, (V, D).

    Args:
        logits: the logits.
        shifts: of their blocks.
        over_rows: (N,) logsumexp of each row less the logarithm of its weight, so that exp(logit - this) is the
            weighted softmax.
        over_columns: (V,), likewise.
        by_queries: what is added to.
        by_keys: likewise.
    """
    buffer, second = logits.buffer(), logits.buffer()
    remaining = iter(shifts)
    for rows in logits.rows():
        for columns in logits.columns():
            block, softmax = logits.block(rows, columns, buffer), _view(second, rows, columns)
            _write_softmax(block, next(remaining), over_rows[rows].unsqueeze(1), over_columns[columns], softmax)
            by_queries[rows].addmm_(softmax, logits.keys[columns])
            if by_keys is not None:
                by_keys[columns].addmm_(softmax.T, logits.queries[rows])


def _write_softmax(
    block: Tensor, shift: float | None, over_rows: Tensor, over_columns: Tensor, softmax: Tensor
) -> None:
    """Write the sum of both directions' weighted softmaxes of a block, which is overwritten, to `softmax`."""
    if shift is None:
        torch.sub(block, over_rows, out=softmax).exp_()
        softmax += block.sub_(over_columns).exp_()
    else:
        torch.add((shift - over_rows).exp_(), (shift - over_columns).exp_(), out=softmax)
        softmax *= block.sub_(shift).exp_()


def _select(rows: Tensor, valid: Tensor) -> Tensor:
    """The valid rows; no copy where all are."""
    return rows if valid.all() else rows.index_select(0, valid.nonzero().squeeze(1))


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, required: {shape}")
