"""The audio tower: its start from the image tower, and its type tokens."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clip4vla.config import AudioToken
from clip4vla.model.audio_tower import AudioTower
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.towers import build_clip, find_architecture

Build = Callable[..., Clip4Vla]


def tiles() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_without_type_tokens_it_computes_what_the_image_tower_does(build: Build) -> None:
    model = build()
    torch.testing.assert_close(model.audio(tiles(), "none"), model.clip.visual(tiles()))
    copied = [p.data_ptr() for p in model.audio.parameters()]
    assert not set(copied) & {p.data_ptr() for p in model.clip.parameters()}


@pytest.mark.parametrize(
    ("token", "same"), [("verbal", 0.0), ("nonverbal", 1.0)], ids=["verbal is 0", "nonverbal is 1"]
)
def test_types_are_the_ends_of_the_mixture(build: Build, token: AudioToken, same: float) -> None:
    tower = build().audio
    torch.testing.assert_close(tower(tiles(), token), tower(tiles(), same))
    assert not torch.allclose(tower(tiles(), same), tower(tiles(), 1 - same), atol=1e-4)


def test_a_sample_has_the_token_of_its_type_and_the_mean_where_it_is_unknown(build: Build) -> None:
    tower = build().audio
    got = tower(tiles(), "sample", torch.tensor([0, 1, -1, -1, 1, 0]))
    types: list[AudioToken] = ["verbal", "nonverbal", 0.5, 0.5, "nonverbal", "verbal"]
    for row, audio_type in enumerate(types):
        torch.testing.assert_close(got[row], tower(tiles()[row : row + 1], audio_type)[0], rtol=1e-4, atol=1e-5)


def test_type_tokens_are_at_the_end_and_share_the_last_position(build: Build) -> None:
    tower = build().audio
    assert tower.positional_embedding.shape == (1 + 4 + 1, 16)
    lengths = {token: tower.hidden(tiles(), token).shape[1] for token in ("none", "verbal", "both")}
    assert lengths == {"none": 5, "verbal": 6, "both": 7}
    with torch.no_grad():
        tower.type_embedding[1] = tower.type_embedding[0]
    first, second = tower.hidden(tiles(), "both")[:, -2:].unbind(1)
    torch.testing.assert_close(first, second)


def test_sample_without_types_is_refused(build: Build) -> None:
    with pytest.raises(ValueError, match="'sample' needs"):
        build().audio(tiles(), "sample")


def test_new_rows_are_as_large_as_clip_s_own() -> None:
    torch.manual_seed(0)
    tower = AudioTower(build_clip(find_architecture("stamp-small", None)).visual)
    width = tower.type_embedding.shape[1]
    assert tower.type_embedding.std().item() == pytest.approx(width**-0.5, rel=0.1)
    assert tower.positional_embedding[-1].std().item() == pytest.approx(width**-0.5, rel=0.2)
