"""Sentences in, token ids out, and back: CLIP's tokenizer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from clip4vla.model.byte_pairs import byte_pairs, words_of
from clip4vla.utils.hashing import HashSet

STEP = 8
"""Tokens by which a batch grows, so that there are few shapes."""
CACHED_SENTENCES = 100_000
"""Sentences whose tokens a process keeps: small corpora come round again and again."""
CACHED_WORDS = 100_000


@dataclass(frozen=True)
class Tokenizer:
    """Sentences to token ids, at most `max_tokens` of them with start and end; small enough to send to a worker."""

    max_tokens: int

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """(B, L) int64, zero after the end token; a longer sentence is cut, its end token kept.

        L is the longest sentence's number of tokens, rounded up to a multiple of 8: text towers are causal, so what
        follows the end token changes nothing and is left out.
        """
        if not sentences:
            return torch.empty((0, 0), dtype=torch.int64)
        rows = [_tokens(self.max_tokens, sentence) for sentence in sentences]
        length = min(self.max_tokens, -(-max(map(len, rows)) // STEP) * STEP)
        return torch.tensor([row + (0,) * (length - len(row)) for row in rows])

    @property
    def ends(self) -> tuple[int, int]:
        """The tokens that begin and end every text."""
        return byte_pairs().start, byte_pairs().end

    def vocabulary(self, sentences: Iterable[str]) -> Tensor:
        """(V,) int64, the tokens of `sentences`: start, end, and the others in order."""
        start, end = self.ends
        found: set[int] = set()
        seen = HashSet()
        for sentence in filter(seen.add, sentences):
            found.update(_tokens(self.max_tokens, sentence))
        return torch.tensor([start, end, *sorted(found - {start, end})])

    def full_vocabulary(self) -> Tensor:
        """(V,) int64, every token that there is: start, end, and the others in order."""
        start, end = self.ends
        size = len(byte_pairs().tokens)
        return torch.tensor([start, end, *(token for token in range(size) if token not in (start, end))])

    def decode(self, tokens: Tensor) -> str:
        """The sentence of `tokens` (L,) up to the first end, as CLIP spells: in lower case, punctuation set apart."""
        start, end = self.ends
        ids = [token for token in tokens.tolist() if token != start]
        words = byte_pairs().decode(ids[: ids.index(end)] if end in ids else ids)
        return " ".join(words.split())


@lru_cache(maxsize=CACHED_SENTENCES)
def _tokens(max_tokens: int, sentence: str) -> tuple[int, ...]:
    """From the start token to the end token."""
    start, end = byte_pairs().start, byte_pairs().end
    tokens = [start, *(token for word in words_of(sentence) for token in _tokens_of_word(word))]
    tokens = [*tokens[: max_tokens - 1], end]
    return tuple(tokens[: tokens.index(end) + 1])


@lru_cache(maxsize=CACHED_WORDS)
def _tokens_of_word(word: str) -> tuple[int, ...]:
    return byte_pairs().encode(word)
