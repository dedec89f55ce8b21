"""The cross encoder: scores of pairs of a text and a clip, and its loss against nearest negatives."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clip4vla.clips.batch import Batch
from clip4vla.model import cross_encoder
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.media_features import MediaFeatures
from clip4vla.model.pretrained import load_model, save_model

Build = Callable[..., Clip4Vla]


@pytest.fixture
def model(build: Build) -> Clip4Vla:
    """With a cross encoder whose scores differ from pair to pair."""
    model = build(fusion="sequence", has_cross_encoder=True)
    assert model.cross_encoder is not None
    torch.nn.init.normal_(model.cross_encoder.similarity.weight, std=0.02)
    return model


def random_media(clips: int) -> MediaFeatures:
    present = torch.ones(clips, 2, dtype=torch.bool)
    return MediaFeatures(torch.randn(clips, 2, 16), present, torch.randn(clips, 2, 16), present)


def test_a_score_depends_on_both_the_text_and_the_clip(model: Clip4Vla) -> None:
    torch.manual_seed(0)
    text, media = F.normalize(torch.randn(3, 16), dim=1), random_media(3)
    scores = model.cross_encoder_scores(text, media)
    assert scores.shape == (3,)
    assert not torch.allclose(scores, model.cross_encoder_scores(text, media.take(torch.tensor([1, 2, 0]))))
    assert not torch.allclose(scores, model.cross_encoder_scores(text.roll(1, 0), media))
    one = torch.tensor([1])
    torch.testing.assert_close(model.cross_encoder_scores(text[one], media.take(one)), scores[one])


def naive_loss(model: Clip4Vla, text: Tensor, clips: Tensor, media: MediaFeatures) -> Tensor:
    """A pair at a time."""

    def score(query: int, clip: int) -> Tensor:
        return model.cross_encoder_scores(text[query : query + 1], media.take(torch.tensor([clip])))[0]

    losses = []
    with torch.no_grad():
        similarity = text @ clips.T
    for own in range(len(text)):
        others = [other for other in range(len(text)) if other != own]
        near_clips = sorted(others, key=lambda other: -similarity[own, other])[: cross_encoder.NEGATIVES]
        near_texts = sorted(others, key=lambda other: -similarity[other, own])[: cross_encoder.NEGATIVES]
        among_clips = torch.stack([score(own, own)] + [score(own, other) for other in near_clips])
        among_texts = torch.stack([score(own, own)] + [score(other, own) for other in near_texts])
        losses.append((among_clips.logsumexp(0) + among_texts.logsumexp(0)) / 2 - score(own, own))
    return torch.stack(losses)


@pytest.mark.parametrize("clips", [1, 2, 6])
def test_the_loss_is_that_of_a_pair_at_a_time_with_its_gradients(
    monkeypatch: pytest.MonkeyPatch, model: Clip4Vla, clips: int
) -> None:
    monkeypatch.setattr(cross_encoder, "NEGATIVES", 3)
    torch.manual_seed(1)
    text, vectors = (F.normalize(torch.randn(clips, 16), dim=1).requires_grad_() for _ in range(2))
    media = random_media(clips)
    trained = [text, *model.cross_encoder.parameters(), *model.fusion.parameters()]
    weights = torch.rand(clips)
    found = model.cross_encoder.loss(model.fusion, text, vectors, media)
    naive = naive_loss(model, text, vectors, media)
    torch.testing.assert_close(found, naive, rtol=1e-4, atol=1e-5)
    gradients = (torch.autograd.grad((weights * losses).sum(), trained) for losses in (found, naive))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_untrained_it_scores_all_pairs_alike(build: Build, batch: Batch) -> None:
    model = build(fusion="sequence", has_cross_encoder=True)
    embeddings, media = model.embed(batch, audio_token="both", names=("text", "both"))
    assert embeddings.text is not None
    assert embeddings.both is not None
    loss = model.cross_encoder_loss(embeddings.text[:, 0], embeddings.both, media)
    torch.testing.assert_close(loss, torch.full((len(batch),), len(batch)).log())


def test_it_needs_a_sequence_fusion_and_a_model_that_has_one(build: Build) -> None:
    with pytest.raises(ValueError, match=r"model\.fusion is 'mean': the cross encoder needs 'sequence'"):
        build(fusion="mean", has_cross_encoder=True)
    model, text = build(fusion="sequence"), torch.randn(2, 16)
    for call in (
        lambda: model.cross_encoder_scores(text, random_media(2)),
        lambda: model.cross_encoder_loss(text, text, random_media(2)),
    ):
        with pytest.raises(ValueError, match=r"no cross encoder: fine-tune it with retrieval\.cross_encoder"):
            call()


def test_it_is_kept_with_the_model(model: Clip4Vla, tmp_path: Path) -> None:
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    text, media = F.normalize(torch.randn(2, 16), dim=1), random_media(2)
    assert again.cross_encoder_scores(text, media).equal(model.eval().cross_encoder_scores(text, media))
