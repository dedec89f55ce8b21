"""Parameter groups and the learning rate."""

import math
from itertools import pairwise

import pytest
from torch import nn

from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.training.optimizer import learning_rate, parameter_groups
from tests.training.tiny import OPTIMIZER, build, build_captioner

FROM_CLIP = OPTIMIZER.model_copy(update={"text_lr_ratio": 0.1, "video_lr_ratio": 0.2})
SCHEDULE = OPTIMIZER.model_copy(update={"lr": 2.0, "warmup": 0.1})


def settings(model: Clip4Vla) -> dict[str, tuple[float, float]]:
    """(lr_ratio, weight_decay) by name of parameter."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, FROM_CLIP)
    assert all(group["lr"] == pytest.approx(FROM_CLIP.lr * group["lr_ratio"]) for group in groups)
    return {names[p]: (group["lr_ratio"], group["weight_decay"]) for group in groups for p in group["params"]}


def test_every_trained_parameter_is_in_one_group() -> None:
    model = build(fusion="sequence")
    groups = parameter_groups(model, FROM_CLIP)
    assert len([p for group in groups for p in group["params"]]) == len(list(model.parameters()))
    assert settings(model).keys() == dict(model.named_parameters()).keys()


def test_a_fixed_temperature_is_in_no_group() -> None:
    assert "clip.logit_scale" not in settings(build(temperature="fixed"))


def test_matrices_decay_and_nothing_else_does() -> None:
    model = build(fusion="sequence")
    found = settings(model)
    norms = {
        f"{name}.{p}" for name, m in model.named_modules() if isinstance(m, nn.LayerNorm) for p in ("weight", "bias")
    }
    still = norms | {name for name in found if name.endswith("bias")}
    still |= {
        *("clip.logit_scale", "clip.token_embedding.weight", "clip.positional_embedding"),
        *("clip.visual.class_embedding", "clip.visual.positional_embedding"),
        *("audio.class_embedding", "audio.type_embedding", "audio.positional_embedding"),
        *("fusion.type_embedding", "fusion.positional_embedding"),
    }
    assert {name for name, (_, decay) in found.items() if decay == 0} == still
    assert found["clip.text_projection"][1] == found["audio.conv1.weight"][1] == OPTIMIZER.weight_decay


def test_in_a_group_laid_out_in_bf16_the_weights_begin_at_whole_multiples_of_16_bytes() -> None:
    sizes = [[weight.numel() for weight in group["params"]] for group in parameter_groups(build(), FROM_CLIP)]
    assert any(1 in of_group for of_group in sizes)  # the logit scale
    for of_group in sizes:
        begins = [2 * sum(of_group[:index]) for index in range(len(of_group))]
        assert all(begin % 16 == 0 for begin, size in zip(begins, of_group, strict=True) if 2 * size % 16 == 0)


def test_clip_s_towers_have_lower_rates_than_new_parts() -> None:
    for name, (ratio, _) in settings(build(fusion="sequence")).items():
        expected = 0.2 if name.startswith("clip.visual.") else 0.1 if name.startswith("clip.") else 1.0
        assert ratio == expected, name


def test_experts_are_new_parts_and_do_not_decay() -> None:
    model = build(fusion="experts")
    found = {name: setting for name, setting in settings(model).items() if name.startswith("experts.")}
    assert found == {f"experts.{name}": (1.0, 0.0) for name, _ in model.experts.named_parameters()}
    assert {"experts.texts.heads", "experts.texts.gate.weight", "experts.clips.missing"} <= found.keys()


def test_a_decoder_has_the_text_tower_s_rate_except_for_new_parts() -> None:
    found = settings(build_captioner())
    new = ("ln_cross", "cross_attention", "ln_memory", "memory_type")
    for name, (ratio, _) in found.items():
        if name.startswith("decoder."):
            assert ratio == (1.0 if any(part in name for part in new) else 0.1), name
    assert found["decoder.memory_type"][1] == found["decoder.embedding.weight"][1] == 0
    assert found["decoder.blocks.0.cross_attention.query.weight"][1] == OPTIMIZER.weight_decay
    assert not [name for name in found if name.startswith("clip.") and not name.startswith("clip.visual.")]


def test_the_rate_rises_to_the_peak_and_falls_to_zero() -> None:
    rates = [learning_rate(step, 100, SCHEDULE) for step in range(100)]
    assert rates[0] > 0
    assert all(later > earlier for earlier, later in pairwise(rates[:11]))
    assert rates[10] == max(rates) == 2.0
    assert all(later < earlier for earlier, later in pairwise(rates[10:]))
    assert learning_rate(55, 100, SCHEDULE) == pytest.approx(1.0)
    assert 0 < rates[-1] < 0.001 < rates[-2]
    assert learning_rate(100, 100, SCHEDULE) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_trainings_have_a_rate(steps: int) -> None:
    assert all(0 < learning_rate(step, steps, SCHEDULE) <= 2.0 for step in range(steps))


def published(progress: float, warmup: float) -> float:
    """`warmup_cosine` of the published code's BertAdam, as a multiple of the peak."""
    return progress / warmup if progress < warmup else 0.5 * (1 + math.cos(math.pi * progress))


def test_without_warm_up_it_is_the_published_schedule() -> None:
    cold = SCHEDULE.model_copy(update={"warmup": 0.0})
    for step in range(50):
        assert learning_rate(step, 50, cold) == pytest.approx(2.0 * published(step / 50, 0.0))


def test_with_warm_up_it_has_the_published_slope_and_end_but_no_step_back_at_the_peak() -> None:
    ours = [learning_rate(step, 1000, SCHEDULE) / 2.0 for step in range(1000)]
    theirs = [published(step / 1000, 0.1) for step in range(1000)]
    assert ours[:100] == pytest.approx(theirs[:100], abs=0.01)
    assert theirs[100] < 0.98 < ours[100] == 1.0  # theirs falls onto a cosine that began at step 0
    assert ours[100:] == pytest.approx(theirs[100:], abs=0.11)
    assert ours[-1] == pytest.approx(theirs[-1], abs=1e-5)


def test_muon_learns_matrices_between_features_only() -> None:
    model = build(fusion="experts")
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, OPTIMIZER.model_copy(update={"name": "muon"}))
    found = {names[weight]: group["matrices"] for group in groups for weight in group["params"]}
    assert found["audio.transformer.resblocks.0.attn.in_proj_weight"] == 3
    assert found["audio.transformer.resblocks.0.mlp.c_fc.weight"] == found["clip.text_projection"] == 1
    others = ("clip.token_embedding.weight", "clip.logit_scale", "audio.conv1.weight", "audio.positional_embedding")
    assert [found[name] for name in others] == [0, 0, 0, 0]
    assert all(number == 0 for name, number in found.items() if name.endswith("bias") or "experts." in name)
    assert {group["matrices"] for group in parameter_groups(model, OPTIMIZER)} == {0}
