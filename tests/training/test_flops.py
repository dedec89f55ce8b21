"""Useful FLOPs against a formula written out by hand, and against a real pass; peaks of devices."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clip4vla.training.flops import StepFlops, peak_flops
from clip4vla.training.objectives import CaptioningObjective, ContrastiveObjective
from tests.training.tiny import EVERYTHING, build, build_captioner, make_batch

WIDTH, EMBEDDING, PATCHES, PATCH = 16, 16, 4, 16
FRAMES = TILES = 2
TOKENS, CAPTIONS = 9, 2
GPU = torch.device("cuda")


def blocks(positions: int, layers: int) -> int:
    """Forward FLOPs of transformer blocks: 4 W² of attention and 8 W² of MLP a position, scores and their sum."""
    return layers * (2 * positions * 12 * WIDTH**2 + 4 * positions**2 * WIDTH)


def image(type_tokens: int) -> int:
    """Forward and backward FLOPs of one image: twice the forward's, but no gradient reaches the pixels."""
    patches = 2 * PATCHES * 3 * PATCH**2 * WIDTH
    return 2 * patches + 3 * (blocks(1 + PATCHES + type_tokens, 1) + 2 * WIDTH * EMBEDDING)


def text() -> int:
    return CAPTIONS * 3 * (blocks(TOKENS, 2) + 2 * WIDTH * EMBEDDING)


@pytest.mark.parametrize(
    ("terms", "token", "expected"),
    [
        (("text_video",), "none", text() + FRAMES * image(0)),
        (("text_audio",), "both", text() + TILES * image(2)),
        (("text_both",), "both", text() + FRAMES * image(0) + TILES * image(2)),
        (("video_audio", "text_both"), "none", text() + FRAMES * image(0) + TILES * image(0)),
        (("text_audio", "audio_audio"), "none", text() + 2 * TILES * image(0)),
    ],
)
def test_a_forward_and_a_backward_pass_of_the_needed_towers_count(
    terms: tuple[str, ...], token: str, expected: int
) -> None:
    flops = StepFlops(build(), ContrastiveObjective(dict.fromkeys(terms, 1.0), token))
    assert flops(make_batch(7, 0)) == 7 * expected


@pytest.mark.parametrize("fusion", ["mean", "sequence"])
def test_a_real_pass_over_an_uneven_batch_has_as_many(fusion: str) -> None:
    model, objective, batch = build(fusion=fusion), ContrastiveObjective({"text_video": 1.0}, "both"), make_batch(7, 0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        embeddings = model(batch, audio_token="both", names=objective.names)
        (embeddings.video_query.sum() + embeddings.video.sum()).backward()
    assert StepFlops(model, objective)(batch) == counter.get_total_flops()


def test_a_real_pass_of_experts_has_as_many() -> None:
    model, objective, batch = (
        build(fusion="experts"),
        ContrastiveObjective({"text_both": 1.0}, "both"),
        make_batch(7, 0),
    )
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        outputs = objective.outputs(model, batch)
        (outputs["query"].sum() + outputs["both"].sum()).backward()
    with FlopCounterMode(display=False) as front_end:
        model.log_mel(batch.waveform, batch.samples)
    found = StepFlops(model, objective)(batch)
    assert found == counter.get_total_flops() - front_end.get_total_flops()
    assert found > 7 * (text() + FRAMES * image(0) + 2 * TILES * image(1))


def test_a_real_pass_of_captioning_has_as_many() -> None:
    model, captioning, batch = build_captioner(), CaptioningObjective("video", "both", 0.1, 0.2), make_batch(7, 0)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        captioning.outputs(model, batch)["caption_loss"].sum().backward()
    assert StepFlops(model, captioning)(batch) == counter.get_total_flops()


def test_recomputed_activations_are_not_useful() -> None:
    model = build()
    expected = StepFlops(model, EVERYTHING)(make_batch(4, 0))
    model.recompute(model.blocks)
    assert StepFlops(model, EVERYTHING)(make_batch(4, 0)) == expected


def test_each_shape_is_counted_once_and_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model, state = build(), torch.get_rng_state()
    flops = StepFlops(model, EVERYTHING)
    counted = []
    count = flops._count
    monkeypatch.setattr(flops, "_count", lambda clip: counted.append(clip.tokens.shape) or count(clip))
    long = make_batch(5, 0)
    short = replace(long, tokens=long.tokens[..., -4:])
    found = [flops(batch) for batch in (long, short, long[:3], short)]
    assert counted == [(1, CAPTIONS, TOKENS), (1, CAPTIONS, 4)]
    assert found[1] == found[3] < found[0]
    assert found[2] == found[0] // 5 * 3
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H200", "bf16", 989.4e12),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312e12),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16", None),
        ("Unknown GPU", "bf16", None),
    ],
)
def test_peaks_of_known_gpus_and_of_no_other(
    name: str, precision: str, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(GPU, precision) == expected
    assert peak_flops(GPU, precision, tflops=2.5) == 2.5e12


def test_a_cpu_has_no_known_peak_but_may_be_given_one() -> None:
    assert peak_flops(torch.device("cpu"), "fp32") is None
    assert peak_flops(torch.device("cpu"), "fp32", tflops=0.1) == 0.1e12


def test_the_peak_of_float32_is_not_that_of_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L4")
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert peak_flops(GPU, "fp32") is None
    assert peak_flops(GPU, "bf16") == 121e12
