"""Beam search: the most likely sentences under a model of the next token.

Independent of any model: tokens are numbers, of which `START` begins a sentence and `END` ends it. All clips are
searched together and independently, so that neither batch nor order changes the result.

Shapes: B clips, K hypotheses of each, V tokens of the vocabulary, L tokens of the longest sentence.
"""

from collections.abc import Callable

import torch
from torch import Tensor

START, END = 0, 1

Advance = Callable[[Tensor, Tensor], Tensor]
"""The last tokens (B * K,) of all hypotheses, and which hypothesis (B * K,) of the step before each continues, to the
log probabilities (B * K, V) float32 of their next tokens. A model that keeps what it computed takes it from there."""


def beam_search(advance: Advance, start: Tensor, beam: int, length: int, length_penalty: float) -> Tensor:
    """The best sentence of each clip, (B, L) int64, without `START`; what follows its `END` is `END`.

    A hypothesis is worth its log probability divided by its number of tokens, `END` included, to the power of
    `length_penalty`. One that has ended stays among the K as long as it is worth it. With as many hypotheses as there
    are sentences the search is exhaustive; with one it is greedy.

    Args:
        advance: the model.
        start: (B,) int64, `START` for each clip.
        beam: K.
        length: the most tokens, `END` included; a sentence that has not ended by then counts as it is.
        length_penalty: 0 or more.
    """
    clips, device = len(start), start.device
    said = start.view(clips, 1, 1).expand(clips, beam, 1)
    score = torch.full((clips, beam), -torch.inf, device=device)
    score[:, 0] = 0.0  # the hypotheses of a clip begin the same: one of them counts
    lengths = torch.zeros(clips, beam, device=device)
    ended = torch.zeros(clips, beam, dtype=torch.bool, device=device)
    first = torch.arange(clips, device=device).unsqueeze(1) * beam
    origin = (first + torch.arange(beam, device=device)).flatten()
    for _ in range(length):
        log_probabilities = advance(said[:, :, -1].flatten(), origin).unflatten(0, (clips, beam))
        total = score.unsqueeze(2) + torch.where(ended.unsqueeze(2), _only_end(log_probabilities), log_probabilities)
        lengths = lengths + ~ended
        worth = total / (lengths**length_penalty).unsqueeze(2)
        chosen = worth.flatten(1).topk(beam).indices
        parent, token = chosen // total.shape[2], chosen % total.shape[2]
        score = total.flatten(1).gather(1, chosen)
        lengths = lengths.gather(1, parent)
        ended = ended.gather(1, parent) | (token == END)
        said = torch.cat([said.gather(1, parent.unsqueeze(2).expand(-1, -1, said.shape[2])), token.unsqueeze(2)], dim=2)
        origin = (first + parent).flatten()
        if ended.all():
            break
    best = (score / lengths**length_penalty).argmax(dim=1)
    return said[torch.arange(clips, device=device), best, 1:]


def _only_end(like: Tensor) -> Tensor:
    """Log probabilities of one that has ended: it goes on with `END` alone, which costs nothing."""
    only = torch.full_like(like, -torch.inf)
    only[:, :, END] = 0.0
    return only
