"""Properties of the model's embeddings, whatever its weights."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import fields, replace
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clip4vla.clips.batch import Batch
from clip4vla.losses.contrastive import info_nce, nt_xent
from clip4vla.model.clip4vla import TEXTS_AT_ONCE, Clip4Vla, EmbeddingName, Embeddings
from tests.model.conftest import END

FUSIONS = ["mean", "sequence"]
NAMES: tuple[EmbeddingName, ...] = get_args(EmbeddingName)
Build = Callable[..., Clip4Vla]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(2)


def everything(model: Clip4Vla, batch: Batch) -> Embeddings:
    return model(batch, audio_token="sample", names=NAMES, generator=generator())


def lengths(vectors: Tensor | None) -> list[float]:
    assert vectors is not None
    return vectors.norm(dim=-1).flatten().tolist()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_embeddings_are_unit_vectors_or_zeros(build: Build, batch: Batch, fusion: str) -> None:
    embeddings = everything(build(fusion=fusion), batch)
    assert embeddings.has_video.tolist() == [True, True, True, False]
    assert embeddings.has_audio.tolist() == [True, True, False, True]
    assert lengths(embeddings.text) == pytest.approx([1, 1, 1, 1])
    assert lengths(embeddings.video) == pytest.approx([1, 1, 1, 0])
    assert lengths(embeddings.audio) == pytest.approx([1, 1, 0, 1])
    assert lengths(embeddings.augmented_audio) == pytest.approx([1, 1, 0, 1])
    assert lengths(embeddings.both) == pytest.approx([1, 1, 1, 1])


@pytest.mark.parametrize("name", NAMES)
def test_only_the_named_embedding_is_computed(build: Build, batch: Batch, name: EmbeddingName) -> None:
    model = build(fusion="experts")
    found = model(batch, audio_token="sample", names=(name,), generator=generator()).tensors()
    assert found.keys() == {"has_video", "has_audio", name}
    torch.testing.assert_close(found[name], getattr(everything(model, batch), name))


def test_embeddings_come_with_the_features_of_frames_and_tiles(build: Build, batch: Batch) -> None:
    model = build(fusion="sequence")
    embeddings, media = model.embed(batch, audio_token="both", names=("both",))
    expected = model.encode_media(batch, audio_token="both", modalities="both")
    for field in fields(expected):
        torch.testing.assert_close(getattr(media, field.name), getattr(expected, field.name))
    fused = model.fuse(media.frames, media.video_mask, media.tiles, media.audio_mask)
    torch.testing.assert_close(embeddings.both, F.normalize(fused, dim=1))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_missing_modality_leaves_the_other_alone(build: Build, batch: Batch, fusion: str) -> None:
    embeddings = everything(build(fusion=fusion), batch)
    assert embeddings.both is not None
    assert embeddings.video is not None
    assert embeddings.audio is not None
    torch.testing.assert_close(embeddings.both[2], embeddings.video[2])
    if fusion == "mean":
        torch.testing.assert_close(embeddings.both[3], embeddings.audio[3])


def test_mean_fusion_is_the_direction_of_the_sum(build: Build, batch: Batch) -> None:
    embeddings = everything(build(), batch)
    assert embeddings.both is not None
    assert embeddings.video is not None
    assert embeddings.audio is not None
    torch.testing.assert_close(embeddings.both, F.normalize(embeddings.video + embeddings.audio, dim=1))


def test_sequence_fusion_lets_frames_attend_to_sound(build: Build, batch: Batch) -> None:
    model = build(fusion="sequence")
    louder = replace(batch, waveform=batch.waveform.flip(2))
    one, other = (everything(model, each).both for each in (batch, louder))
    assert one is not None
    assert other is not None
    assert not torch.allclose(one[0], other[0])
    torch.testing.assert_close(one[2], other[2])


@pytest.mark.parametrize("fusion", [*FUSIONS, "experts"])
def test_masked_frames_and_samples_change_nothing(build: Build, batch: Batch, fusion: str) -> None:
    model = build(fusion=fusion)
    frames = torch.where(batch.video_mask[:, :, None, None, None], batch.frames, 255 - batch.frames)
    waveform = batch.waveform.clone()
    waveform[2] = 0.5
    one, other = everything(model, batch), everything(model, replace(batch, frames=frames, waveform=waveform))
    for name in ("video", "audio", "both"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name))


def test_micro_batches_add_up_to_the_batch(build: Build, batch: Batch) -> None:
    model = build(fusion="sequence")
    names: tuple[EmbeddingName, ...] = ("text", "video", "audio", "both")
    expected = model(batch, audio_token="sample", names=names).tensors()
    parts = [model(batch[rows], audio_token="sample", names=names) for rows in (slice(0, 1), slice(1, 4))]
    joined = {name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()}
    assert joined.keys() == {"has_video", "has_audio", *names}
    for name, value in expected.items():
        torch.testing.assert_close(joined[name], value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_parameter_gets_a_gradient(build: Build, batch: Batch, fusion: str) -> None:
    model = build(fusion=fusion)
    f = everything(model, batch)
    for vectors in (f.text, f.video, f.audio, f.augmented_audio, f.both):
        assert vectors is not None
    loss = info_nce(f.text[:, 0], f.audio, model.scale(), valid=f.has_audio)
    loss = loss + info_nce(f.video, f.audio, model.scale(), valid=f.has_audio & f.has_video)
    loss = (
        loss
        + nt_xent(f.audio, f.augmented_audio, model.scale(), valid=f.has_audio)
        + info_nce(f.text[:, 0], f.both, model.scale())
    )
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []
    still = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
    assert still == []


@pytest.mark.parametrize("fusion", FUSIONS)
def test_recomputing_blocks_changes_no_bit_of_a_gradient(build: Build, batch: Batch, fusion: str) -> None:
    gradients = []
    for blocks in (0, 1, 3, 99):
        model = build(fusion=fusion)
        model.recompute(blocks)
        embeddings = everything(model, batch)
        assert embeddings.both is not None
        assert embeddings.text is not None
        (embeddings.both * embeddings.text[:, 0]).sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    for others in gradients[1:]:
        torch.testing.assert_close(others, gradients[0], rtol=0, atol=0)


def test_the_learned_scale_stops_at_100_and_can_come_down(build: Build) -> None:
    model = build()
    assert model.scale().item() == pytest.approx(1 / 0.07)
    model.logit_scale.data.fill_(math.log(250))
    scale = model.scale()
    assert scale.shape == (1,)
    assert scale.item() == pytest.approx(100)
    scale.backward()
    assert model.logit_scale.grad is not None
    assert model.logit_scale.grad.item() > 0


def test_the_fixed_scale_is_100_and_is_not_learned(build: Build) -> None:
    model = build(temperature="fixed")
    assert model.scale().item() == 100
    assert not model.logit_scale.requires_grad


@pytest.mark.parametrize("fusion", [*FUSIONS, "experts"])
def test_every_tensor_is_made_on_the_models_device(
    build: Build, batch: Batch, fusion: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's meta device refuses, like a GPU, to mix with the CPU."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    device = torch.device("meta")
    embeddings = build(fusion=fusion).to(device)(
        batch.to(device), audio_token="sample", names=("query", "video_query", "audio", "both")
    )
    assert embeddings.both is not None
    assert embeddings.both.device == device


def test_frames_of_another_size_are_refused(build: Build, batch: Batch) -> None:
    frames = torch.zeros(4, 2, 3, 48, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"\(3, 48, 32\).* tiny reads \(3, 32, 32\)"):
        build()(replace(batch, frames=frames), audio_token="both", names=("video",))


def test_texts_longer_than_the_context_are_refused(build: Build) -> None:
    with pytest.raises(ValueError, match=r"13 tokens .* reads 12"):
        build().encode_text(torch.ones(1, 13, dtype=torch.int64))


def test_padding_after_the_end_of_a_text_changes_nothing(build: Build, batch: Batch) -> None:
    model, tokens = build(), batch.tokens[:, 0]
    longer = F.pad(tokens, (0, 3))
    torch.testing.assert_close(model.encode_text(tokens), model.encode_text(longer))


def test_texts_in_groups_of_similar_length_are_encoded_as_one_by_one(build: Build) -> None:
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randint(1, END, (TEXTS_AT_ONCE * 2 + 5, 12), generator=generator)
    for row, end in enumerate(torch.randint(1, 12, (len(tokens),), generator=generator).tolist()):
        tokens[row, end], tokens[row, end + 1 :] = END, 0
    model = build()
    one_by_one = torch.cat([model.encode_text(text[None]) for text in tokens])
    torch.testing.assert_close(model.encode_text(tokens), one_by_one)


def test_a_model_in_half_precision_has_embeddings_in_single(build: Build, batch: Batch) -> None:
    exact = everything(build(fusion="sequence"), batch)
    rough = everything(build(fusion="sequence").bfloat16(), batch)
    for name in exact.tensors().keys() - {"has_video", "has_audio"}:
        assert getattr(rough, name).dtype == torch.float32
        torch.testing.assert_close(getattr(rough, name), getattr(exact, name), rtol=0, atol=0.1)
