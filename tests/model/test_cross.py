"""The cross-attending score: it reads pairs as one, and learns to tell a clip's text from its like."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clip4vla.batch import Batch
from clip4vla.model import cross
from clip4vla.model.checkpoints import load_model, save_model
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.percepts import Percepts

Build = Callable[..., Clip4Vla]


@pytest.fixture
def model(build: Build) -> Clip4Vla:
    """Scores pairs, by a head that already prefers something."""
    model = build(fusion="sequence", scores_pairs=True)
    assert model.scorer is not None
    torch.nn.init.normal_(model.scorer.similarity.weight, std=0.02)
    return model


def random_percepts(clips: int) -> Percepts:
    there = torch.ones(clips, 2, dtype=torch.bool)
    return Percepts(torch.randn(clips, 2, 16), there, torch.randn(clips, 2, 16), there)


def test_a_text_and_a_clip_are_seen_together(model: Clip4Vla) -> None:
    torch.manual_seed(0)
    text, percepts = F.normalize(torch.randn(3, 16), dim=1), random_percepts(3)
    scores = model.cross_scores(text, percepts)
    assert scores.shape == (3,)
    assert not torch.allclose(scores, model.cross_scores(text, percepts.take(torch.tensor([1, 2, 0]))))
    assert not torch.allclose(scores, model.cross_scores(text.roll(1, 0), percepts))
    one = torch.tensor([1])
    torch.testing.assert_close(model.cross_scores(text[one], percepts.take(one)), scores[one])


def naive_loss(model: Clip4Vla, text: Tensor, clips: Tensor, percepts: Percepts) -> Tensor:
    """A pair at a time."""

    def score(query: int, clip: int) -> Tensor:
        return model.cross_scores(text[query : query + 1], percepts.take(torch.tensor([clip])))[0]

    losses = []
    with torch.no_grad():
        similarity = text @ clips.T
    for own in range(len(text)):
        others = [other for other in range(len(text)) if other != own]
        near_clips = sorted(others, key=lambda other: -similarity[own, other])[: cross.NEGATIVES]
        near_texts = sorted(others, key=lambda other: -similarity[other, own])[: cross.NEGATIVES]
        among_clips = torch.stack([score(own, own)] + [score(own, other) for other in near_clips])
        among_texts = torch.stack([score(own, own)] + [score(other, own) for other in near_texts])
        losses.append((among_clips.logsumexp(0) + among_texts.logsumexp(0)) / 2 - score(own, own))
    return torch.stack(losses)


@pytest.mark.parametrize("clips", [1, 2, 6])
def test_the_loss_is_that_of_a_pair_at_a_time_with_its_gradients(
    monkeypatch: pytest.MonkeyPatch, model: Clip4Vla, clips: int
) -> None:
    monkeypatch.setattr(cross, "NEGATIVES", 3)
    torch.manual_seed(1)
    text, vectors = (F.normalize(torch.randn(clips, 16), dim=1).requires_grad_() for _ in range(2))
    percepts = random_percepts(clips)
    learned = [text, *model.scorer.parameters(), *model.fusion.parameters()]
    weights = torch.rand(clips)
    found = model.scorer.loss(model.fusion, text, vectors, percepts)
    naive = naive_loss(model, text, vectors, percepts)
    torch.testing.assert_close(found, naive, rtol=1e-4, atol=1e-5)
    gradients = (torch.autograd.grad((weights * losses).sum(), learned) for losses in (found, naive))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_a_batch_is_asked_for_it_as_for_a_view(model: Clip4Vla, batch: Batch) -> None:
    everything = model(batch, audio_token="both", views=("text", "both", "cross"))
    alone = model(batch, audio_token="both", views=("cross",))
    assert alone.text is None
    assert alone.both is None
    assert alone.cross.shape == (len(batch),)
    torch.testing.assert_close(everything.cross, alone.cross)


def test_untrained_it_prefers_nothing(build: Build, batch: Batch) -> None:
    features = build(fusion="sequence", scores_pairs=True)(batch, audio_token="both", views=("cross",))
    torch.testing.assert_close(features.cross, torch.full((len(batch),), len(batch)).log())


def test_it_wants_a_fusion_and_a_model_that_has_it(build: Build, batch: Batch) -> None:
    with pytest.raises(ValueError, match=r"model\.fusion is 'mean': .* are read together only by 'sequence'"):
        build(fusion="mean", scores_pairs=True)
    with pytest.raises(ValueError, match=r"scores no pairs: fine-tune it with finetune\.text_cross"):
        build(fusion="sequence")(batch, audio_token="both", views=("cross",))


def test_it_is_kept_with_the_model(model: Clip4Vla, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    text, percepts = F.normalize(torch.randn(2, 16), dim=1), random_percepts(2)
    assert again.cross_scores(text, percepts).equal(model.eval().cross_scores(text, percepts))
