"""Terms, needed embeddings, masks and the sum of an objective."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from benchmarks.parity.losses import TOTALS
from clip4vla.clips.batch import Batch
from clip4vla.config import EXPERT_TERMS, CaptioningConfig, PretrainingConfig, RetrievalConfig
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.records import Modality
from clip4vla.training.objectives import (
    TERMS,
    CaptioningObjective,
    ContrastiveObjective,
    Outputs,
    build_objective,
    total_loss,
)
from tests.training.tiny import (
    EVERYTHING,
    OPTIMIZER,
    build,
    build_captioner,
    make_batch,
    naive_losses,
    with_identical_captions,
)

SETTINGS = {"epochs": 1, "batch_size": 8, "optimizer": OPTIMIZER}
SCALE = torch.tensor([4.0])  # low enough for vectors compared with themselves to leave a loss


WITH_IDS = ("text_audio", "video_audio", "text_video", "text_both", "shared_text_both", *EXPERT_TERMS)
"""Terms for which identical captions match."""
WITHOUT_IDS = [name for name in TERMS if name not in (*EXPERT_TERMS, "shared_text_both")]


@pytest.fixture
def outputs() -> dict[str, Tensor]:
    """Random unit vectors, and losses of pairs; the second clip has no sound, the third no frames: zeros."""
    generator = torch.Generator().manual_seed(0)
    has_audio, has_video = torch.ones(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool)
    has_audio[1], has_video[2] = False, False
    names = ("video", "audio", "augmented_audio", "both")
    vectors = {name: F.normalize(torch.randn(8, 16, generator=generator), dim=1) for name in names}
    texts = ("text", "query", "video_query")
    vectors |= {name: F.normalize(torch.randn(8, 2, 16, generator=generator), dim=2) for name in texts}
    vectors |= {name: vectors[name] * has_audio[:, None] for name in ("audio", "augmented_audio")}
    vectors["video"] *= has_video[:, None]
    vectors["cross_encoder_loss"] = torch.rand(8, generator=generator)
    leaves = {name: vector.requires_grad_() for name, vector in vectors.items()}
    return {"has_video": has_video, "has_audio": has_audio, **leaves}


@pytest.fixture
def identical(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with ids of captions and, as of a model with four experts of width 4, their queries and weights."""
    generator = torch.Generator().manual_seed(1)
    batch = with_identical_captions(make_batch(8, 0))
    queries = F.normalize(torch.randn(8, 2, 4, 4, generator=generator), dim=3).requires_grad_()
    weights = torch.randn(8, 2, 4, generator=generator).softmax(2).requires_grad_()
    ids = {"text_ids": batch.text_ids, "clip_text_ids": batch.clip_text_ids, "shared": batch.shared}
    return {**outputs, **ids, "expert_queries": queries, "expert_weights": weights}


@pytest.mark.parametrize("name", WITHOUT_IDS)
def test_a_term_is_the_naive_loss_over_the_clips_that_have_what_it_compares(outputs: Outputs, name: str) -> None:
    loss = ContrastiveObjective({name: 0.5}, "both").losses(outputs, SCALE)
    assert loss[name].item() == pytest.approx(naive_losses(outputs, SCALE, {name: 0.5})[name].item(), rel=1e-5)


@pytest.mark.parametrize("name", WITH_IDS)
def test_with_ids_a_caption_is_right_for_every_clip_that_has_it(identical: Outputs, name: str) -> None:
    loss = ContrastiveObjective({name: 0.5}, "both").losses(identical, SCALE)[name]
    assert loss.item() == pytest.approx(naive_losses(identical, SCALE, {name: 0.5})[name].item(), rel=1e-5)
    without = {key: value for key, value in identical.items() if key not in ("text_ids", "clip_text_ids")}
    if name in WITHOUT_IDS:
        plain = ContrastiveObjective({name: 0.5}, "both").losses(without, SCALE)[name]
        assert abs(loss.item() - plain.item()) > 0.01


@pytest.mark.parametrize("name", ["text_both", "text_video", "text_audio"])
def test_captions_that_are_not_trained_apart_are_all_compared(identical: Outputs, name: str) -> None:
    together = {key: value for key, value in identical.items() if key != "shared"}
    loss = ContrastiveObjective({name: 1.0}, "both").losses(together, SCALE)[name]
    everyone = {**identical, "shared": torch.zeros(8, 2, dtype=torch.bool)}
    assert loss.item() == pytest.approx(naive_losses(everyone, SCALE, {name: 1.0})[name].item(), rel=1e-5)


def test_shared_captions_pull_own_ones_and_are_not_pulled(identical: Outputs) -> None:
    objective = ContrastiveObjective({"text_text_experts": 1.0}, "both")
    total_loss(objective.losses(identical, SCALE)).backward()
    reached = identical["expert_queries"].grad.flatten(2).any(2)
    assert torch.equal(reached, ~identical["shared"])


def test_own_and_shared_captions_are_separate_terms(identical: Outputs) -> None:
    own, shared = ~identical["shared"], identical["shared"]
    for name, rows in (("text_both", own), ("shared_text_both", shared)):
        query = identical["query"].detach().clone().requires_grad_()
        objective = ContrastiveObjective({name: 1.0}, "both")
        total_loss(objective.losses({**identical, "query": query}, SCALE)).backward()
        assert torch.equal(query.grad.any(2), rows)


@pytest.mark.parametrize("name", TERMS)
def test_the_gradient_of_a_term_reaches_what_it_compares_and_nothing_else(identical: Outputs, name: str) -> None:
    outputs = identical
    objective = ContrastiveObjective({name: 1.0}, "both")
    total_loss(objective.losses(outputs, SCALE)).backward()
    reached = {key for key, value in outputs.items() if value.grad is not None}
    compared = {"cross_encoder": {"cross_encoder_loss"}, "text_text_experts": {"expert_queries"}}
    assert reached == compared.get(name, set(TERMS[name][0]))
    assert all(outputs[key].grad.abs().max() > 1e-3 for key in reached)
    assert set(objective.names) == set(TERMS[name][0])


def gradients(
    everything: ContrastiveObjective, model: Clip4Vla, batch: Batch | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Of the total, and of each term alone, by all parameters of `model` in one vector."""
    torch.manual_seed(0)
    outputs = everything.outputs(model, batch or make_batch(8, 0))
    parameters = [p for p in model.parameters() if p.requires_grad]

    def of(weights: Mapping[str, float]) -> Tensor:
        loss = total_loss(ContrastiveObjective(weights, "sample").losses(outputs, model.scale()))
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        return torch.cat([part.flatten() for part in found])

    return of(everything.weights), {name: of({name: 1.0}) for name in everything.weights}


def test_the_gradient_of_the_total_is_the_weighted_sum_of_the_terms_gradients() -> None:
    total, by_term = gradients(EVERYTHING, build())
    assert all(term.norm() > 1e-3 for term in by_term.values())
    expected = torch.stack([weight * by_term[name] for name, weight in EVERYTHING.weights.items()]).sum(0)
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-4)


def test_every_term_of_experts_adds_its_gradient() -> None:
    everything = ContrastiveObjective(
        {"text_both": 1.5, "shared_text_both": 1.0, "text_video": 0.5, **dict.fromkeys(EXPERT_TERMS, 0.8)}, "both"
    )
    total, by_term = gradients(everything, build(fusion="experts"), with_identical_captions(make_batch(8, 0)))
    assert all(term.norm() > 1e-3 for term in by_term.values())
    expected = torch.stack([weight * by_term[name] for name, weight in everything.weights.items()]).sum(0)
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("term", "reached"),
    [
        ("text_video", {"clip", "experts.texts"}),
        ("text_experts", {"clip", "audio", "experts.texts", "experts.clips"}),
        ("text_audio_experts", {"clip", "audio", "experts.texts"}),
        ("text_text_experts", {"clip", "experts.texts"}),
        ("shared_text_both", {"clip", "audio", "experts.texts", "experts.clips"}),
    ],
)
def test_a_term_of_experts_trains_towers_queries_and_missing_vectors(term: str, reached: set[str]) -> None:
    model, objective = build(fusion="experts"), ContrastiveObjective({term: 1.0}, "none")
    outputs = objective.outputs(model, with_identical_captions(make_batch(8, 0)))
    total_loss(objective.losses(outputs, model.scale())).backward()
    found = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    parts = {".".join(name.split(".")[: 2 if name.startswith("experts.") else 1]) for name in found}
    assert parts == reached


def test_the_cross_encoder_s_loss_adds_its_gradient_as_a_weighted_term() -> None:
    model = build(fusion="sequence", has_cross_encoder=True)
    torch.nn.init.normal_(model.cross_encoder.similarity.weight, std=0.02)
    total, by_term = gradients(ContrastiveObjective({"text_both": 1.0, "cross_encoder": 0.8}, "sample"), model)
    assert by_term["cross_encoder"].norm() > 1e-3
    expected = by_term["text_both"] + 0.8 * by_term["cross_encoder"]
    torch.testing.assert_close(total, expected, rtol=1e-3, atol=1e-5)


def test_the_cross_encoder_s_loss_is_an_output_only_where_it_is_a_term() -> None:
    model, batch = build(fusion="sequence", has_cross_encoder=True), make_batch(8, 0)
    torch.nn.init.normal_(model.cross_encoder.similarity.weight, std=0.02)
    without = ContrastiveObjective({"text_both": 1.0}, "both").outputs(model, batch)
    assert without.keys() == {"has_video", "has_audio", "query", "both"}
    objective = ContrastiveObjective({"cross_encoder": 0.5}, "both")
    found = objective.outputs(model, batch)
    assert found.keys() == {"has_video", "has_audio", "text", "both", "cross_encoder_loss"}
    embeddings, media = model.embed(batch, audio_token="both", names=("text", "both"))
    expected = model.cross_encoder_loss(embeddings.text[:, 0], embeddings.both, media)
    torch.testing.assert_close(found["cross_encoder_loss"], expected)
    loss = objective.losses(found, SCALE)["cross_encoder"]
    torch.testing.assert_close(loss, 0.5 * expected.mean())


@pytest.mark.parametrize(("name", "clip"), [("audio", 1), ("augmented_audio", 1), ("video", 2)])
def test_what_a_clip_lacks_is_neither_query_nor_key(outputs: Outputs, name: str, clip: int) -> None:
    garbage = outputs[name].detach().clone()
    garbage[clip] = 100.0
    changed = EVERYTHING.losses({**outputs, name: garbage}, SCALE)
    assert {k: v.item() for k, v in changed.items()} == {
        k: v.item() for k, v in EVERYTHING.losses(outputs, SCALE).items()
    }


def test_a_batch_without_any_sound_has_losses_of_zero(outputs: Outputs) -> None:
    losses = EVERYTHING.losses({**outputs, "has_audio": torch.zeros(8, dtype=torch.bool)}, SCALE)
    assert losses["text_audio"].item() == losses["video_audio"].item() == losses["audio_audio"].item() == 0
    assert losses["text_video"].item() > 0


def test_the_total_is_the_sum(outputs: Outputs) -> None:
    losses = EVERYTHING.losses(outputs, SCALE)
    assert total_loss(losses).item() == pytest.approx(sum(loss.item() for loss in losses.values()))


@pytest.mark.parametrize("total", TOTALS)
def test_the_published_totals_are_weights_of_a_pretraining(outputs: Outputs, total: str) -> None:
    terms = naive_losses(outputs, SCALE, dict.fromkeys(WITHOUT_IDS, 1.0))
    nce = terms["text_audio"] + terms["video_audio"]
    tav_nce = nce + terms["video_audio"]
    expected = {
        "nce": nce,
        "nce_ss": nce + terms["audio_audio"],
        "tav_nce": tav_nce,
        "tav_nce_ss": tav_nce + terms["audio_audio"] + terms["text_text"] + terms["video_video"],
    }
    nothing = {name: 0.0 for name in TERMS if name in PretrainingConfig.model_fields}
    pretraining = PretrainingConfig(**SETTINGS, **(nothing | TOTALS[total]))
    losses = ContrastiveObjective.of(pretraining, "sample").losses(outputs, SCALE)
    assert total_loss(losses).item() == pytest.approx(expected[total].item(), rel=1e-5)


def test_only_terms_with_a_weight_and_the_embeddings_that_they_need_are_computed() -> None:
    pretraining = PretrainingConfig(**SETTINGS, video_audio=0.0, audio_audio=0.5)
    objective = ContrastiveObjective.of(pretraining, "sample")
    assert objective.weights == {"text_audio": 1.0, "audio_audio": 0.5}
    assert objective.names == ("text", "audio", "augmented_audio")
    retrieval = ContrastiveObjective.of(RetrievalConfig(**SETTINGS, text_both=2.0), "both")
    assert retrieval.weights == {"text_both": 2.0}
    assert retrieval.names == ("query", "both")


def test_an_objective_without_terms_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to train"):
        ContrastiveObjective.of(RetrievalConfig(**SETTINGS, text_both=0.0), "both")


def test_captioning_is_the_mean_loss_of_its_clips_with_modalities_dropped_at_random() -> None:
    model, batch = build_captioner(), make_batch(8, 0)
    captioning = build_objective(CaptioningConfig(**SETTINGS, label_smoothing=0.1), "both")
    assert isinstance(captioning, CaptioningObjective)
    assert not captioning.needs_all_clips
    outputs = captioning.outputs(model, batch)
    media = model.encode_media(batch, audio_token="both", modalities="both")
    expected = model.caption_loss(batch.tokens, media, label_smoothing=0.1)
    assert outputs.keys() == {"caption_loss"}
    torch.testing.assert_close(outputs["caption_loss"], expected)
    assert captioning.losses(outputs, SCALE)["caption"].item() == pytest.approx(expected.mean().item())
    dropped = replace(captioning, modality_dropout=1.0).outputs(model, batch)["caption_loss"]
    has_both = batch.video_mask.any(1) & (batch.samples > 0)
    assert torch.equal(~torch.isclose(dropped, expected), has_both)


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_captioning_by_one_modality_trains_the_tower_of_that_one(modality: Modality) -> None:
    model, batch = build_captioner(), make_batch(8, 0)
    CaptioningObjective(modality, "both", 0.1, 0.5).outputs(model, batch)["caption_loss"].sum().backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"decoder", {"video": "clip", "audio": "audio"}[modality]}


def test_a_training_section_has_its_objective() -> None:
    retrieval = RetrievalConfig(**SETTINGS, text_audio=0.5)
    assert build_objective(retrieval, "both") == ContrastiveObjective({"text_audio": 0.5, "text_both": 1.0}, "both")
    captioning = CaptioningConfig(**SETTINGS, modalities="video", label_smoothing=0.1, modality_dropout=0.2)
    assert build_objective(captioning, "none") == CaptioningObjective("video", "none", 0.1, 0.2)
