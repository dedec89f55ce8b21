"""Sentences in, token ids out: the tokenizer that belongs to an open_clip architecture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

STEP = 8
"""Tokens by which a batch grows, so that there are few shapes."""
REMEMBERED = 100_000
"""Sentences whose tokens a process keeps: small corpora come round again and again."""


@dataclass(frozen=True)
class Tokenizer:
    """Sentences to token ids, at most `words` of them with start and end; small enough to send to a worker."""

    architecture: str
    words: int

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """(B, L) int64, zero after the end token; a longer sentence is cut, its end token kept.

        L is the longest sentence's number of tokens, rounded up to a multiple of 8: text towers are causal, so what
        follows the end token changes nothing and is left out.
        """
        if not sentences:
            return torch.empty((0, 0), dtype=torch.int64)
        tokens = torch.stack([_tokens(self.architecture, self.words, sentence) for sentence in sentences])
        longest = int((tokens != 0).sum(dim=1).max())
        return tokens[:, : min(self.words, -(-longest // STEP) * STEP)]


@lru_cache(maxsize=REMEMBERED)
def _tokens(architecture: str, words: int, sentence: str) -> Tensor:
    tokens: Tensor = _tokenizer(architecture)([sentence], context_length=words)[0]
    return tokens


@lru_cache
def _tokenizer(architecture: str) -> Callable[..., Tensor]:
    import open_clip

    from clip4vla.model.towers import find_architecture

    find_architecture(architecture, None)
    return open_clip.get_tokenizer(architecture)
