"""Experts: the text decides which modality a clip is compared by.

A clip keeps one vector per expert: the video, and the audio under each type token of `model.audio_experts`. A text has
a query vector and a weight per expert, and the score of a pair is the weighted sum of the cosines,

    score(text, clip) = sum_e weight_e(text) * cos(query_e(text), clip_e) / |weights(text)|,

which is one inner product of concatenated vectors, so that every vector index works. Sources: mixture of embedding
experts (Miech et al., arXiv 1804.02516; Gabeur et al., arXiv 2007.10639); experts by type token are ours. Initially the
queries are the text itself and the weights those of the mean fusion.

Where a clip lacks a modality, a learned vector stands for it. Renormalising the weights over what is there instead, as
in the sources, would let a silent clip that shows a bell answer "the sound of a bell".

Shapes: N texts, B clips, E experts, D embedding width.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

GATE_SCALE = 20.0
"""Factor of the unit text vector before the gate's linear layer, whose learning rate is that of the towers: with Adam
it sets how fast the weights move."""
HEADS = 2
"""Attention heads of each expert over the tokens of a text."""
MASKED = -1e4
"""Attention to padding before the softmax."""
VIDEO_WEIGHT = 0.5
"""Initial weight of the video expert; the audio experts share the rest."""


class TextExperts(nn.Module):
    """Query vectors and weights of texts, initially the text itself and the weights of the mean fusion.

    Each expert attends to the tokens of the text by heads of its own and adds what they find to the end token: from "a
    bell rings while someone says hello" the video, sound and speech experts read different words.

    Args:
        experts: E, the video expert first.
        width: D.
    """

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.keys = nn.Parameter(torch.randn(experts, HEADS, width) * width**-0.5)
        self.values = nn.Parameter(torch.zeros(experts, HEADS, width, width))
        self.heads = nn.Parameter(torch.eye(width).repeat(experts, 1, 1))
        self.gate = nn.Linear(width, experts)
        nn.init.zeros_(self.gate.weight)
        audio_weight = (1 - VIDEO_WEIGHT) / (experts - 1)
        initial = torch.tensor([VIDEO_WEIGHT] + [audio_weight] * (experts - 1))
        with torch.no_grad():
            self.gate.bias.copy_(initial.log())

    def forward(self, tokens: Tensor, end: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The text itself and what the experts read in it.

        Args:
            tokens: (N, L, D) features of the tokens of N texts, in the embedding space.
            end: (N,) position of the end token.

        Returns:
            unit vectors (N, D) of the texts, unit query vectors (N, E, D), and weights (N, E) that sum to 1.
        """
        units = F.normalize(tokens.float(), dim=2)
        text = units[torch.arange(len(units), device=units.device), end]
        past = torch.arange(units.shape[1], device=units.device) > end.unsqueeze(1)
        scaled = units * units.shape[2] ** 0.5
        attention = torch.einsum("nld,ehd->nehl", scaled, self.keys.float())
        attention = attention.masked_fill(past[:, None, None], MASKED).softmax(3)
        found = torch.einsum("nehl,nld->nehd", attention, scaled)
        read = torch.einsum("nehd,ehdk->nek", found, self.values.float())
        queries = torch.einsum("ned,edk->nek", text.unsqueeze(1) * units.shape[2] ** 0.5 + read, self.heads.float())
        logits = F.linear(GATE_SCALE * text, self.gate.weight.float(), self.gate.bias.float())
        return text, F.normalize(queries, dim=2), logits.softmax(1)


class ClipExperts(nn.Module):
    """The expert vectors of clips, with a learned one where a clip lacks the modality (initially zero).

    Args:
        experts: E.
        width: D.
    """

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.missing = nn.Parameter(torch.zeros(experts, width))

    def forward(self, vectors: Tensor, present: Tensor) -> Tensor:
        """(B, E, D) of unit vectors (B, E, D) and which of them are there (B, E)."""
        return torch.where(present.unsqueeze(2), vectors, self.missing.to(vectors.dtype))


class Experts(nn.Module):
    """Both sides.

    Args:
        experts: E, the video expert first.
        width: D.
    """

    def __init__(self, experts: int, width: int) -> None:
        super().__init__()
        self.texts = TextExperts(experts, width)
        self.clips = ClipExperts(experts, width)


def weighted(queries: Tensor, weights: Tensor) -> Tensor:
    """The text side (N, E * D) of the score: weighted queries, concatenated and normalised to unit length.

    The length does not matter for which clips a text finds, but for which texts a clip finds: without it, a text about
    one modality would have longer vectors than one about all of them.
    """
    return F.normalize((queries * weights.unsqueeze(2)).flatten(1), dim=1)
