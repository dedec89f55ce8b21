"""Beam search against an exhaustive one, over toy models that are tables of numbers."""

from itertools import product

import pytest
import torch
from torch import Tensor

from clip4vla.model.beam_search import END, START, beam_search

TOKENS, LENGTH, CLIPS = 4, 4, 6


class Toy:
    """Log probabilities of the next token by clip and by the two last tokens; it keeps state as a cache does."""

    def __init__(self, seed: int, clips: int = CLIPS) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = (2 * torch.randn(clips, TOKENS, TOKENS, TOKENS, generator=generator)).log_softmax(3)
        self.before: Tensor | None = None

    def __call__(self, tokens: Tensor, origin: Tensor) -> Tensor:
        before = tokens if self.before is None else self.before[origin]
        clips = torch.arange(len(self.table)).repeat_interleave(len(tokens) // len(self.table))
        self.before = tokens
        return self.table[clips, before, tokens]

    def log_probability(self, clip: int, sentence: tuple[int, ...]) -> float:
        path = (START, START, *sentence)
        return sum(float(self.table[clip, a, b, c]) for a, b, c in zip(path, path[1:], path[2:], strict=False))


def sentences() -> list[tuple[int, ...]]:
    """All that there are: ended, or cut at LENGTH tokens."""
    paths = product(range(TOKENS), repeat=LENGTH)
    found = {path[: path.index(END) + 1] if END in path else path for path in paths}
    return sorted(found)


def search(toy: Toy, beam: int, penalty: float) -> list[tuple[int, ...]]:
    found = beam_search(toy, torch.full((len(toy.table),), START), beam, LENGTH, penalty).tolist()
    return [tuple(row[: row.index(END) + 1] if END in row else row) for row in found]


@pytest.mark.parametrize("penalty", [0.0, 0.7, 1.0, 2.0])
def test_with_as_many_hypotheses_as_sentences_it_is_exhaustive(penalty: float) -> None:
    everything = sentences()
    for seed in range(5):
        toy = Toy(seed)
        best = [
            max(everything, key=lambda s, clip=clip: toy.log_probability(clip, s) / len(s) ** penalty)
            for clip in range(CLIPS)
        ]
        assert search(toy, len(everything), penalty) == best


def test_one_hypothesis_takes_the_likeliest_token_each_time() -> None:
    for seed in range(5):
        toy = Toy(seed)
        expected = []
        for clip in range(CLIPS):
            path = [START, START]
            while len(path) < LENGTH + 2 and path[-1] != END:
                path.append(int(toy.table[clip, path[-2], path[-1]].argmax()))
            expected.append(tuple(path[2:]))
        assert search(toy, 1, 1.0) == expected


def test_more_hypotheses_find_what_fewer_miss() -> None:
    worth = dict.fromkeys((1, 2, 16), 0.0)
    for seed in range(20):
        for beam in worth:
            toy = Toy(seed)
            worth[beam] += sum(toy.log_probability(clip, s) for clip, s in enumerate(search(toy, beam, 0.0)))
    assert worth[1] < worth[2] < worth[16]


def test_a_greater_penalty_makes_longer_sentences() -> None:
    lengths = [sum(len(s) for seed in range(10) for s in search(Toy(seed), 64, penalty)) for penalty in (0.0, 1.0, 3.0)]
    assert lengths[0] < lengths[1] < lengths[2]
