"""Terms, views, masks and the sum of an objective."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from benchmarks.parity.losses import TOTALS
from clip4vla.model.clip4vla import VIEWS, Features
from clip4vla.params import load_params
from clip4vla.training.objective import TERMS, Captioning, Objective, criterion_of
from tests.training.tiny import EVERYTHING, build, build_writer, make_batch, naive_losses

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
SCALE = torch.tensor([4.0])  # low enough for vectors compared with themselves to leave a loss


@pytest.fixture
def features() -> Features:
    """Random unit vectors, and losses of pairs; the second clip has no sound, the third no pictures: zeros."""
    generator = torch.Generator().manual_seed(0)
    has_audio, has_video = torch.ones(8, dtype=torch.bool), torch.ones(8, dtype=torch.bool)
    has_audio[1], has_video[2] = False, False
    names = ("video", "audio", "audio_view", "both")
    vectors = {name: F.normalize(torch.randn(8, 16, generator=generator), dim=1) for name in names}
    vectors["text"] = F.normalize(torch.randn(8, 2, 16, generator=generator), dim=2)
    vectors |= {name: vectors[name] * has_audio[:, None] for name in ("audio", "audio_view")}
    vectors["video"] *= has_video[:, None]
    vectors["cross"] = torch.rand(8, generator=generator)
    leaves = {name: vector.requires_grad_() for name, vector in vectors.items()}
    return Features(has_video=has_video, has_audio=has_audio, **leaves)


@pytest.mark.parametrize("name", TERMS)
def test_a_term_is_the_naive_loss_over_the_clips_that_have_what_it_compares(features: Features, name: str) -> None:
    loss = Objective({name: 0.5}, "both").losses(features, SCALE)
    assert loss[name].item() == pytest.approx(naive_losses(features, SCALE, {name: 0.5})[name].item(), rel=1e-5)


@pytest.mark.parametrize("name", TERMS)
def test_every_term_sends_a_gradient_to_the_views_it_compares_and_to_no_other(features: Features, name: str) -> None:
    objective = Objective({name: 1.0}, "both")
    objective.total(objective.losses(features, SCALE)).backward()
    reached = {view for view in VIEWS if getattr(features, view).grad is not None}
    assert reached == set(TERMS[name][0]) == set(objective.views)
    assert all(getattr(features, view).grad.abs().max() > 1e-3 for view in reached)


def test_the_gradient_of_the_total_is_the_weighted_sum_of_the_terms_gradients() -> None:
    model, batch = build(), make_batch(8, 0)
    weights = {**EVERYTHING.weights, "text_text": 0.4, "video_video": 0.6}

    def gradient(terms: dict[str, float]) -> torch.Tensor:
        objective = Objective(terms, "sample")
        torch.manual_seed(0)
        features = model(batch, audio_token=objective.audio_token, views=EVERYTHING.views)
        model.zero_grad()
        objective.total(objective.losses(features, model.scale())).backward()
        return torch.cat(
            [p.grad.flatten() if p.grad is not None else torch.zeros(p.numel()) for p in model.parameters()]
        )

    by_term = {name: weight * gradient({name: 1.0}) for name, weight in weights.items()}
    assert all(term.norm() > 1e-3 for term in by_term.values())
    whole = gradient(dict(weights))
    torch.testing.assert_close(whole, torch.stack(list(by_term.values())).sum(0), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("view", "clip"), [("audio", 1), ("audio_view", 1), ("video", 2)])
def test_what_a_clip_lacks_is_neither_query_nor_key(features: Features, view: str, clip: int) -> None:
    garbage = getattr(features, view).detach().clone()
    garbage[clip] = 100.0
    changed = EVERYTHING.losses(replace(features, **{view: garbage}), SCALE)
    assert {k: v.item() for k, v in changed.items()} == {
        k: v.item() for k, v in EVERYTHING.losses(features, SCALE).items()
    }


def test_a_batch_without_any_sound_has_losses_of_zero(features: Features) -> None:
    silent = replace(features, has_audio=torch.zeros(8, dtype=torch.bool))
    losses = EVERYTHING.losses(silent, SCALE)
    assert losses["text_audio"].item() == losses["video_audio"].item() == losses["audio_audio"].item() == 0
    assert losses["text_video"].item() > 0


def test_the_total_is_the_sum(features: Features) -> None:
    losses = EVERYTHING.losses(features, SCALE)
    assert EVERYTHING.total(losses).item() == pytest.approx(sum(loss.item() for loss in losses.values()))


@pytest.mark.parametrize("total", TOTALS)
def test_the_published_totals_are_weights_of_a_pretraining(features: Features, total: str) -> None:
    terms = naive_losses(features, SCALE, dict.fromkeys(TERMS, 1.0))
    nce = terms["text_audio"] + terms["video_audio"]
    tav_nce = nce + terms["video_audio"]
    expected = {
        "nce": nce,
        "nce_ss": nce + terms["audio_audio"],
        "tav_nce": tav_nce,
        "tav_nce_ss": tav_nce + terms["audio_audio"] + terms["text_text"] + terms["video_video"],
    }
    nothing = {name: 0.0 for name in TERMS if hasattr(PARAMS.pretrain, name)}
    objective = Objective.of(PARAMS.pretrain.model_copy(update=nothing | TOTALS[total]), "sample")
    found = objective.total(objective.losses(features, SCALE))
    assert found.item() == pytest.approx(expected[total].item(), rel=1e-5)


def test_only_terms_with_a_weight_are_computed_and_only_their_views_asked_for() -> None:
    weights = {"text_audio": 1.0, "video_audio": 0.0, "audio_audio": 0.5, "text_video": 0.0}
    pretrain = PARAMS.pretrain.model_copy(update=weights)
    objective = Objective.of(pretrain, "sample")
    assert objective.weights == {"text_audio": 1.0, "audio_audio": 0.5}
    assert objective.views == ("text", "audio", "audio_view")
    finetune = PARAMS.finetune.model_copy(update={"text_both": 2.0, "text_video": 0.0, "text_audio": 0.0})
    assert Objective.of(finetune, "both").weights == {"text_both": 2.0}
    assert Objective.of(finetune, "both").views == ("text", "both")


def test_an_objective_without_terms_is_refused() -> None:
    nothing = PARAMS.finetune.model_copy(update={"text_both": 0.0, "text_video": 0.0, "text_audio": 0.0})
    with pytest.raises(ValueError, match="nothing to train"):
        Objective.of(nothing, "both")


def test_captioning_is_the_mean_loss_of_its_clips_with_modalities_hidden_at_random() -> None:
    model, batch = build_writer(), make_batch(8, 0)
    captioning = criterion_of(PARAMS.caption.model_copy(update={"modality_dropout": 0.0}), "both")
    assert isinstance(captioning, Captioning)
    assert not captioning.needs_all_clips
    outputs = captioning.outputs(model, batch)
    percepts = model.perceive(batch, audio_token="both", modalities="both")
    expected = model.caption_loss(batch.tokens, percepts, PARAMS.caption.label_smoothing)
    torch.testing.assert_close(outputs.caption, expected)
    assert captioning.losses(outputs, SCALE)["caption"].item() == pytest.approx(expected.mean().item())
    hidden = replace(captioning, modality_dropout=1.0).outputs(model, batch).caption
    sees_and_hears = batch.video_mask.any(1) & (batch.samples > 0)
    assert torch.equal(~torch.isclose(hidden, expected), sees_and_hears)


@pytest.mark.parametrize("modality", ["vision", "audio"])
def test_captioning_by_one_modality_trains_the_tower_of_that_one(modality: str) -> None:
    model, batch = build_writer(), make_batch(8, 0)
    Captioning(modality, "both", 0.1, 0.5).outputs(model, batch).caption.sum().backward()
    reached = {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert reached == {"decoder", {"vision": "clip", "audio": "audio"}[modality]}


def test_a_section_of_params_has_its_criterion() -> None:
    assert criterion_of(PARAMS.finetune, "both") == Objective.of(PARAMS.finetune, "both")
    assert criterion_of(PARAMS.caption, "none") == Captioning(
        *("both", "none", PARAMS.caption.label_smoothing, PARAMS.caption.modality_dropout)
    )
