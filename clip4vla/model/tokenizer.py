"""Sentences in, token ids out, and back: the tokenizer that belongs to an open_clip architecture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from clip4vla.utils.hashing import HashSet

STEP = 8
"""Tokens by which a batch grows, so that there are few shapes."""
CACHED_SENTENCES = 100_000
"""Sentences whose tokens a process keeps: small corpora come round again and again."""


@dataclass(frozen=True)
class Tokenizer:
    """Sentences to token ids, at most `max_tokens` of them with start and end; small enough to send to a worker."""

    architecture: str
    max_tokens: int

    def __call__(self, sentences: Sequence[str]) -> Tensor:
        """(B, L) int64, zero after the end token; a longer sentence is cut, its end token kept.

        L is the longest sentence's number of tokens, rounded up to a multiple of 8: text towers are causal, so what
        follows the end token changes nothing and is left out.
        """
        if not sentences:
            return torch.empty((0, 0), dtype=torch.int64)
        tokens = torch.stack([_tokens(self.architecture, self.max_tokens, sentence) for sentence in sentences])
        longest = int((tokens == self.ends[1]).int().argmax(dim=1).max()) + 1  # 0 is a token, too: "!"
        return tokens[:, : min(self.max_tokens, -(-longest // STEP) * STEP)]

    @property
    def ends(self) -> tuple[int, int]:
        """The tokens that begin and end every text."""
        start, end = _tokens(self.architecture, self.max_tokens, "")[:2].tolist()
        return start, end

    def vocabulary(self, sentences: Iterable[str]) -> Tensor:
        """(V,) int64, the tokens of `sentences`: start, end, and the others in order."""
        start, end = self.ends
        found: set[int] = set()
        seen = HashSet()
        for sentence in filter(seen.add, sentences):
            tokens = _tokens(self.architecture, self.max_tokens, sentence).tolist()
            found.update(tokens[: tokens.index(end)])
        return torch.tensor([start, end, *sorted(found - {start, end})])

    def full_vocabulary(self) -> Tensor:
        """(V,) int64, every token that there is: start, end, and the others in order."""
        start, end = self.ends
        size = _tokenizer(self.architecture).vocab_size
        return torch.tensor([start, end, *(token for token in range(size) if token not in (start, end))])

    def decode(self, tokens: Tensor) -> str:
        """The sentence of `tokens` (L,) up to the first end, as CLIP spells: in lower case, punctuation set apart."""
        start, end = self.ends
        ids = [token for token in tokens.tolist() if token != start]
        words: str = _tokenizer(self.architecture).decode(ids[: ids.index(end)] if end in ids else ids)
        return " ".join(words.split())


@lru_cache(maxsize=CACHED_SENTENCES)
def _tokens(architecture: str, max_tokens: int, sentence: str) -> Tensor:
    tokens: Tensor = _tokenizer(architecture)([sentence], context_length=max_tokens)[0]
    return tokens


@lru_cache
def _tokenizer(architecture: str) -> Any:
    import open_clip

    from clip4vla.model.towers import find_architecture

    find_architecture(architecture, None)
    return open_clip.get_tokenizer(architecture)
