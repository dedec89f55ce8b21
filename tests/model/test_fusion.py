"""Pooling and the sequence fusion's limits."""

from collections.abc import Callable

import pytest
import torch

from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.fusion import SequenceFusion, mean_of_present, pool

Build = Callable[..., Clip4Vla]


def test_pooling_is_the_mean_direction_of_what_is_there() -> None:
    features = torch.tensor([[[3.0, 0.0], [0.0, 5.0], [-9.0, -9.0]], [[1.0, 1.0]] * 3])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]], dtype=torch.bool)
    expected = torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, 0.0]])
    torch.testing.assert_close(pool(features, mask), expected)


def test_the_gradient_of_an_empty_clip_is_zero() -> None:
    features = torch.randn(1, 3, 4, requires_grad=True)
    pool(features, torch.zeros(1, 3, dtype=torch.bool)).sum().backward()
    assert features.grad is not None
    assert (features.grad == 0).all()


def test_mean_of_present() -> None:
    video, audio = torch.tensor([[1.0, 0.0]] * 4), torch.tensor([[0.0, 1.0]] * 4)
    has_video, has_audio = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0]], dtype=torch.bool)
    expected = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    torch.testing.assert_close(mean_of_present(video, audio, has_video, has_audio), expected)


def test_the_sequence_fusion_starts_from_the_text_tower(build: Build) -> None:
    model = build(fusion="sequence", fusion_layers=2)
    assert model.fusion is not None
    lent = {
        key: value for key, value in model.clip.transformer.state_dict().items() if not key.startswith("resblocks.2")
    }
    torch.testing.assert_close(dict(model.fusion.transformer.state_dict()), lent)
    torch.testing.assert_close(model.fusion.positional_embedding, model.clip.positional_embedding)
    own = {p.data_ptr() for p in model.fusion.parameters()}
    assert not own & {p.data_ptr() for p in model.clip.parameters()}
    assert len(model.clip.transformer.resblocks) == 3


def test_more_layers_than_the_text_tower_has_are_refused(build: Build) -> None:
    with pytest.raises(ValueError, match=r"fusion_layers is 4.*only 3"):
        build(fusion="sequence", fusion_layers=4)


def test_a_text_tower_of_another_width_is_refused(build: Build) -> None:
    clip = build().clip
    clip.text_projection = torch.nn.Parameter(torch.zeros(16, 24))
    with pytest.raises(ValueError, match="width is 16 while the embedding's is 24: choose 'mean'"):
        SequenceFusion(clip, 1)


def test_a_sequence_longer_than_the_positions_is_refused(build: Build) -> None:
    fusion = build(fusion="sequence").fusion
    assert fusion is not None
    frames, mask = torch.zeros(1, 7, 16), torch.ones(1, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match="at most 12, not 14"):
        fusion(frames, mask, frames, mask)
