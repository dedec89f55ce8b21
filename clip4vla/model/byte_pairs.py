"""CLIP's byte-pair encoding: words in, token ids out, and back.

The vocabulary is the file that open_clip installs, read without importing open_clip, which takes seconds.
"""

import gzip
import html
from functools import cache
from itertools import pairwise

import ftfy
import regex

from clip4vla.model.towers import open_clip_file

VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"
MERGES = 48_894
"""Of those in the file, the first ones: 49,152 tokens with those of the 256 bytes, inside a word and at its end, and
without start and end."""
SPECIAL = ("<start_of_text>", "<end_of_text>")
WORD_END = "</w>"
UNITS = regex.compile(
    "|".join([*SPECIAL, r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"]), regex.IGNORECASE
)
"""What a token never reaches over: a word, a digit, a row of other characters."""


class BytePairs:
    """The tokens of CLIP; `byte_pairs` is the one instance that a process needs."""

    def __init__(self) -> None:
        lines = gzip.decompress(open_clip_file(VOCABULARY).read_bytes()).decode().split("\n")
        self.merges: list[tuple[str, str]] = [(a, b) for a, b in map(str.split, lines[1 : MERGES + 1])]
        """Pairs that are joined, the most frequent first."""
        self._letters = _letters_of_bytes()
        letters = list(self._letters.values())
        joined = ["".join(pair) for pair in self.merges]
        self.tokens = [*letters, *(letter + WORD_END for letter in letters), *joined, *SPECIAL]
        """Every token in the order of the ids, as the letters of its bytes."""
        self._bytes = {letter: byte for byte, letter in self._letters.items()}
        self._ids = {token: index for index, token in enumerate(self.tokens)}
        self._ranks = {pair: rank for rank, pair in enumerate(self.merges)}
        self.start, self.end = (self._ids[token] for token in SPECIAL)

    def encode(self, word: str) -> tuple[int, ...]:
        """Ids of the tokens of a word from `words_of`."""
        units = ("".join(self._letters[byte] for byte in unit.encode()) for unit in UNITS.findall(word))
        return tuple(self._ids[token] for unit in units for token in self._split(unit))

    def decode(self, ids: list[int]) -> str:
        """The text of tokens, with a space after each word."""
        letters = "".join(self.tokens[index] for index in ids)
        return bytes(self._bytes[letter] for letter in letters).decode(errors="replace").replace(WORD_END, " ")

    def _split(self, unit: str) -> list[str]:
        """Join letters, the most frequent pair first, until no pair of neighbours is a token."""
        if unit in SPECIAL:
            return [unit]
        parts = [*unit[:-1], unit[-1] + WORD_END]
        while len(parts) > 1:
            pair = min(pairwise(parts), key=lambda pair: self._ranks.get(pair, MERGES))
            if pair not in self._ranks:
                break
            joined: list[str] = []
            for part in parts:
                if joined and (joined[-1], part) == pair:
                    joined[-1] += part
                else:
                    joined.append(part)
            parts = joined
        return parts


@cache
def byte_pairs() -> BytePairs:
    """The tokens of CLIP, read once."""
    return BytePairs()


def words_of(sentence: str) -> list[str]:
    """The words of a sentence in lower case, broken encodings and HTML's entities repaired; no token spans two."""
    return html.unescape(html.unescape(ftfy.fix_text(sentence))).lower().split()


def _letters_of_bytes() -> dict[int, str]:
    """A printable letter for each byte: itself, or one beyond Latin-1 where it is a control character or a space."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + place) for place, byte in enumerate(others)}
