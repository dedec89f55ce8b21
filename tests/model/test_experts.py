"""Experts: which modality a clip is compared by depends on the text; they start as the mean of both."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clip4vla.clips.batch import Batch
from clip4vla.config import ModelConfig
from clip4vla.model.clip4vla import TEXTS_AT_ONCE, Clip4Vla, Embeddings
from clip4vla.model.experts import ClipExperts
from clip4vla.model.fusion import mean_of_present, pool
from clip4vla.model.pretrained import load_model, save_model
from tests.model.conftest import END, TINY

Build = Callable[..., Clip4Vla]
WIDTH = TINY.config["embed_dim"]
TOKENS = [("verbal", "nonverbal"), ("none",), ("none", "verbal", 0.25, "both")]


def trained(model: Clip4Vla) -> Clip4Vla:
    """The same model with experts that no longer are as initialised."""
    assert model.experts is not None
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.experts.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def embed(model: Clip4Vla, batch: Batch) -> Embeddings:
    texts = ("text", "query", "video_query", "expert_queries", "expert_weights")
    return model(batch, audio_token="both", names=(*texts, "video", "both"))


def audio_under(model: Clip4Vla, batch: Batch, token: str | float) -> Tensor:
    """Unit vectors (B, D) of the sound under a type token, zero without sound."""
    return model(batch, audio_token=token, names=("audio",)).audio


def expert_vectors(model: Clip4Vla, batch: Batch) -> Tensor:
    """(B, E, D) of what is there, by the embeddings of single modalities."""
    video = model(batch, audio_token="none", names=("video",)).video
    return torch.stack([video, *(audio_under(model, batch, token) for token in model.config.audio_experts)], dim=1)


# the initial state


@pytest.mark.parametrize("tokens", TOKENS)
def test_half_of_the_weight_is_initially_the_video_s_and_the_queries_are_the_text(
    build: Build, batch: Batch, tokens: tuple
) -> None:
    found = embed(build(fusion="experts", audio_experts=tokens), batch)
    expected = torch.tensor([1 / 2, *[1 / 2 / len(tokens)] * len(tokens)])
    torch.testing.assert_close(found.expert_weights, expected.expand(4, 1, -1))
    torch.testing.assert_close(found.expert_queries, found.text.unsqueeze(2).expand(-1, -1, 1 + len(tokens), -1))


def test_the_initial_score_is_the_weighted_mean_of_the_cosines(build: Build, batch: Batch) -> None:
    model = build(fusion="experts")
    found, text = embed(model, batch), embed(model, batch).text[:, 0]
    verbal, nonverbal = (audio_under(model, batch, token) for token in ("verbal", "nonverbal"))
    length = (1 / 4 + 1 / 16 + 1 / 16) ** 0.5
    expected = text @ (found.video / 2 + verbal / 4 + nonverbal / 4).T / length
    torch.testing.assert_close(found.query[:, 0] @ found.both.T, expected)


def test_with_one_audio_expert_clips_are_initially_in_the_order_of_the_published_mean(
    build: Build, batch: Batch
) -> None:
    """Of clips that have both; the token is the one that the mean is trained with."""
    model = build(fusion="experts", audio_experts=("both",))
    mean = build(fusion="mean")
    assert torch.equal(model.clip.text_projection, mean.clip.text_projection)
    media = mean.encode_media(batch, audio_token="both", modalities="both")
    clips = mean_of_present(
        pool(media.frames, media.video_mask), pool(media.tiles, media.audio_mask), *torch.ones(2, 4, dtype=torch.bool)
    )
    found = embed(model, batch)
    torch.testing.assert_close(found.query[:, 0] @ found.both.T, 2**0.5 * found.text[:, 0] @ clips.T)


def test_without_training_a_missing_modality_has_no_similarity(build: Build, batch: Batch) -> None:
    both = embed(build(fusion="experts"), batch).both.unflatten(1, (3, WIDTH))
    assert not both[2, 1:].any()
    assert not both[3, 0].any()


# once trained


@pytest.mark.parametrize("tokens", TOKENS)
def test_one_inner_product_is_the_weighted_sum_of_the_cosines(build: Build, batch: Batch, tokens: tuple) -> None:
    model = trained(build(fusion="experts", audio_experts=tokens))
    has_all = batch[:2]
    found, clips = embed(model, has_all), expert_vectors(model, has_all)
    cosines = torch.einsum("ned,bed->nbe", found.expert_queries[:, 0], clips)
    assert found.query.shape[2] == found.both.shape[1] == (1 + len(tokens)) * WIDTH
    weights = F.normalize(found.expert_weights[:, 0], dim=1)
    torch.testing.assert_close(found.query[:, 0] @ found.both.T, (weights.unsqueeze(1) * cosines).sum(2))
    assert cosines.abs().max() <= 1 + 1e-6


@pytest.mark.parametrize("tokens", TOKENS)
def test_weights_are_positive_and_sum_to_1_for_any_text(build: Build, tokens: tuple) -> None:
    model, experts = trained(build(fusion="experts", audio_experts=tokens)), 1 + len(tokens)
    texts = torch.randint(1, END, (50, 9), generator=torch.Generator().manual_seed(2))
    texts[:, -1] = END
    weights = model._read_by_experts(texts)[2]
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(1), torch.ones(50))
    assert weights.std(0).min() > 0.05
    parts = model.embed_queries(texts).unflatten(1, (experts, WIDTH))
    torch.testing.assert_close(parts.norm(dim=2), F.normalize(weights, dim=1))


def test_the_learned_vector_stands_where_a_modality_is_missing_and_only_there(build: Build, batch: Batch) -> None:
    model = trained(build(fusion="experts"))
    both = embed(model, batch).both.unflatten(1, (3, WIDTH))
    there = torch.tensor([[1, 1, 1], [1, 1, 1], [1, 0, 0], [0, 1, 1]], dtype=torch.bool)
    torch.testing.assert_close(both[there], expert_vectors(model, batch)[there])
    torch.testing.assert_close(both[2, 1:], model.experts.clips.missing[1:])
    torch.testing.assert_close(both[3, 0], model.experts.clips.missing[0])


def test_what_a_missing_modality_holds_is_not_read() -> None:
    module = ClipExperts(2, 3)
    torch.nn.init.ones_(module.missing)
    vectors = torch.full((2, 2, 3), torch.nan)
    vectors[0, 0] = vectors[1, 1] = 0.5
    found = module(vectors, torch.tensor([[True, False], [False, True]]))
    assert found.tolist() == [[[0.5] * 3, [1.0] * 3], [[1.0] * 3, [0.5] * 3]]


def test_the_audio_expert_depends_on_its_token_and_not_on_the_token_of_the_call(build: Build, batch: Batch) -> None:
    model = build(fusion="experts")
    one = model(batch, audio_token="both", names=("both",)).both.unflatten(1, (3, WIDTH))
    other = model(batch, audio_token="none", names=("both",)).both.unflatten(1, (3, WIDTH))
    assert torch.equal(one, other)
    assert not torch.allclose(one[0, 1], one[0, 2])


def test_a_query_is_the_same_alone_and_among_the_captions_of_a_batch(build: Build, batch: Batch) -> None:
    model = trained(build(fusion="experts"))
    found, tokens = embed(model, batch), batch.tokens[:, 0]
    torch.testing.assert_close(model.embed_queries(tokens), found.query[:, 0])
    torch.testing.assert_close(found.video_query, found.expert_queries[:, :, 0])
    one_by_one = [model.embed_queries(text[None, : int(text.argmax()) + 1]) for text in tokens]
    torch.testing.assert_close(torch.cat(one_by_one), found.query[:, 0])
    many = tokens.repeat(TEXTS_AT_ONCE // 2, 1)
    torch.testing.assert_close(model.embed_queries(many), found.query[:, 0].repeat(TEXTS_AT_ONCE // 2, 1))


@pytest.mark.parametrize("fusion", ["mean", "sequence"])
def test_without_experts_a_query_is_the_text_and_nothing_is_weighed(build: Build, batch: Batch, fusion: str) -> None:
    model = build(fusion=fusion)
    found = embed(model, batch)
    assert torch.equal(found.query, found.text)
    assert torch.equal(found.video_query, found.text)
    assert found.expert_queries is found.expert_weights is None
    torch.testing.assert_close(model.embed_queries(batch.tokens[:, 0]), found.text[:, 0])


def test_only_the_embeddings_that_are_asked_for_take_passes_of_the_towers(
    build: Build, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tokens = build(fusion="experts"), []
    encode = model.encode_audio
    monkeypatch.setattr(
        model, "encode_audio", lambda tiles, token, *types: tokens.append(token) or encode(tiles, token, *types)
    )
    for names, expected in [
        (("both",), ["verbal", "nonverbal"]),
        (("both", "augmented_audio"), ["none", "verbal", "nonverbal"]),
        (("query", "video"), []),
    ]:
        tokens.clear()
        model(batch, audio_token="none", names=names)
        assert tokens == expected


# training


def loss_of(model: Clip4Vla, batch: Batch) -> Tensor:
    found = embed(model, batch)
    logits = model.scale() * found.query[:, 0] @ found.both.T
    return F.cross_entropy(logits, torch.arange(len(batch)))


def test_gradients_reach_every_parameter_of_experts_and_towers(build: Build, batch: Batch) -> None:
    model = trained(build(fusion="experts"))
    loss_of(model, batch).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert {name for name, p in model.named_parameters() if not p.grad.any()} == set()


def test_the_first_step_trains_heads_gate_and_missing_vectors(build: Build, batch: Batch) -> None:
    model = build(fusion="experts")
    loss_of(model, batch).backward()
    experts = model.experts
    assert all(head.abs().max() > 1e-4 for head in experts.texts.heads.grad)
    assert all(vector.abs().max() > 1e-4 for vector in (experts.texts.gate.weight.grad, *experts.clips.missing.grad))


def test_missing_vectors_have_no_gradient_from_clips_that_have_everything(build: Build, batch: Batch) -> None:
    model = build(fusion="experts")
    loss_of(model, batch[:2]).backward()
    assert not model.experts.clips.missing.grad.any()


def test_recomputing_blocks_changes_no_bit_of_a_gradient(build: Build, batch: Batch) -> None:
    gradients = []
    for blocks in (0, 1, 3, 99):
        model = trained(build(fusion="experts"))
        model.recompute(blocks)
        loss_of(model, batch).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for others in gradients[1:]:
        torch.testing.assert_close(others, gradients[0], rtol=0, atol=0)


def test_in_half_precision_vectors_are_float32_and_queries_have_unit_length(build: Build, batch: Batch) -> None:
    exact, rough = (embed(model, batch) for model in (build(fusion="experts"), build(fusion="experts").bfloat16()))
    for name in ("query", "video_query", "both"):
        assert getattr(rough, name).dtype == torch.float32
        assert (F.cosine_similarity(getattr(rough, name), getattr(exact, name), dim=-1) > 0.99).all()
    torch.testing.assert_close(rough.query.norm(dim=2), torch.ones(4, 1))


# stored


@pytest.mark.parametrize("tokens", TOKENS)
def test_a_saved_model_has_the_same_scores(build: Build, batch: Batch, tmp_path: Path, tokens: tuple) -> None:
    model = trained(build(fusion="experts", audio_experts=tokens)).eval()
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.audio_experts == tokens
    with torch.no_grad():
        one, other = embed(model, batch), embed(loaded, batch)
    assert torch.equal(one.query, other.query)
    assert torch.equal(one.both, other.both)


def test_a_model_with_initial_weights_has_the_same_shape(build: Build) -> None:
    model = trained(build(fusion="experts", audio_experts=("both",)))
    fresh = model.with_initial_weights()
    assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}
    assert torch.equal(fresh.experts.texts.heads, torch.eye(WIDTH).expand(2, -1, -1))


@pytest.mark.parametrize("tokens", [[], ["sample"], ["loud"], [1.5], ["verbal", "verbal"]])
def test_tokens_that_no_expert_can_have_are_refused(tokens: list) -> None:
    with pytest.raises(ValidationError, match="audio_experts"):
        ModelConfig(architecture="tiny", fusion="experts", audio_experts=tokens)
