"""Sentences in, token ids out, and back: the tokenizer that belongs to an open_clip architecture."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from clip4vla.utils.hashing import HashSet

STEP = 8
"""Tokens by which a batch grows, so that there are few shapes."""
CACHED_SENTENCES = 100_000
"""Sentences whose tokens a process keeps: small corpora come round again and again."""
CACHED_WORDS = 100_000


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
        rows = [_tokens(self.architecture, self.max_tokens, sentence) for sentence in sentences]
        length = min(self.max_tokens, -(-max(map(len, rows)) // STEP) * STEP)
        return torch.tensor([row + (0,) * (length - len(row)) for row in rows])

    @property
    def ends(self) -> tuple[int, int]:
        """The tokens that begin and end every text."""
        start, end = _tokens(self.architecture, self.max_tokens, "")
        return start, end

    def vocabulary(self, sentences: Iterable[str]) -> Tensor:
        """(V,) int64, the tokens of `sentences`: start, end, and the others in order."""
        start, end = self.ends
        found: set[int] = set()
        seen = HashSet()
        for sentence in filter(seen.add, sentences):
            found.update(_tokens(self.architecture, self.max_tokens, sentence))
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
def _tokens(architecture: str, max_tokens: int, sentence: str) -> tuple[int, ...]:
    """From the start token to the end token."""
    tokenizer = _tokenizer(architecture)
    if type(tokenizer) is SimpleTokenizer and tokenizer.reduction_fn is None:
        words = tokenizer.clean_fn(sentence).split()
        tokens = [tokenizer.sot_token_id, *(token for word in words for token in _tokens_of_word(architecture, word))]
        tokens = [*tokens[: max_tokens - 1], tokenizer.eot_token_id]
    else:
        tokens = tokenizer([sentence], context_length=max_tokens)[0].tolist()
    return tuple(tokens[: tokens.index(tokenizer.eot_token_id) + 1])


@lru_cache(maxsize=CACHED_WORDS)
def _tokens_of_word(architecture: str, word: str) -> tuple[int, ...]:
    """CLIP's tokens never reach over a space, so a cleaned sentence has those of its words."""
    tokenizer = _tokenizer(architecture)
    units = ("".join(map(tokenizer.byte_encoder.get, unit.encode())) for unit in tokenizer.pat.findall(word))
    return tuple(tokenizer.encoder[token] for unit in units for token in tokenizer.bpe(unit).split(" "))


@lru_cache
def _tokenizer(architecture: str) -> Any:
    from clip4vla.model.towers import find_architecture

    find_architecture(architecture, None)
    return open_clip.get_tokenizer(architecture)
