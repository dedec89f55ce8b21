"""Sentences in, token ids out: the tokenizer that belongs to an open_clip architecture."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

STEP = 8
"""Tokens by which a batch grows, so that there are few shapes."""


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
        tokens = _tokenizer(self.architecture)(list(sentences), context_length=self.words)
        longest = int((tokens != 0).sum(dim=1).max()) if len(tokens) else 0
        return tokens[:, : min(self.words, -(-longest // STEP) * STEP)]


@lru_cache
def _tokenizer(architecture: str) -> Callable[..., Tensor]:
    import open_clip

    from clip4vla.model.towers import find_architecture

    find_architecture(architecture, None)
    return open_clip.get_tokenizer(architecture)
