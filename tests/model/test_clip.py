"""The text and image tower against open_clip's, which has the same weights from the same seed."""

import open_clip
import pytest
import torch
from torch import Tensor

from clip4vla.model.clip import Clip
from clip4vla.model.towers import Architecture, build_clip

PLAIN = Architecture(
    "plain",
    {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 24, "layers": 3, "head_width": 6, "mlp_ratio": 2.5},
        "text_cfg": {"context_length": 12, "vocab_size": 64, "width": 20, "heads": 2, "layers": 2, "mlp_ratio": 1.5},
    },
)
OPENAIS = Architecture(
    "openais",
    {
        "embed_dim": 16,
        "quick_gelu": True,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "ls_init_value": 0.3},
        "text_cfg": {
            **{"context_length": 12, "vocab_size": 64, "width": 24, "heads": 3, "layers": 2},
            **{"ls_init_value": 0.2, "pool_type": "eos", "eos_id": 41},
        },
    },
)
both = pytest.mark.parametrize("architecture", [PLAIN, OPENAIS], ids=lambda architecture: architecture.name)


def build(architecture: Architecture) -> tuple[Clip, open_clip.CLIP]:
    """Ours and open_clip's, in double precision."""
    torch.manual_seed(3)
    ours = build_clip(architecture)
    torch.manual_seed(3)
    theirs = open_clip.CLIP(**architecture.config, nonscalar_logit_scale=True)
    return ours.double(), theirs.double()


def texts() -> Tensor:
    """(5, 12) with an end, 41 or the highest id, of different length each."""
    tokens = torch.randint(1, 40, (5, 12), generator=torch.Generator().manual_seed(0))
    for row, end in enumerate((3, 11, 7, 5, 1)):
        tokens[row, end], tokens[row, end + 1 :] = 41, 0
    return tokens


@both
def test_a_seed_gives_the_weights_of_open_clip_by_the_same_names(architecture: Architecture) -> None:
    ours, theirs = build(architecture)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


@both
@pytest.mark.parametrize("with_gradients", [True, False])
def test_features_are_those_of_open_clip(architecture: Architecture, with_gradients: bool) -> None:
    ours, theirs = build(architecture)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = texts()
    with torch.set_grad_enabled(with_gradients):
        seen = ours.visual(images)
        read = ours.encode_embedded(ours.embed_tokens(tokens), ours.end_of(tokens))
    torch.testing.assert_close(seen, theirs.encode_image(images))
    torch.testing.assert_close(read, theirs.encode_text(tokens))


@both
def test_gradients_are_those_of_open_clip(architecture: Architecture) -> None:
    ours, theirs = build(architecture)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tokens = texts()
    seen, read = ours.visual(images), ours.encode_embedded(ours.embed_tokens(tokens), ours.end_of(tokens))
    (seen.sin().sum() + read.sin().sum()).backward()
    (theirs.encode_image(images).sin().sum() + theirs.encode_text(tokens).sin().sum()).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, msg=name)


def test_features_of_all_positions_are_those_before_pooling() -> None:
    ours, _ = build(PLAIN)
    embedded, ends = ours.embed_tokens(texts()), ours.end_of(texts())
    torch.testing.assert_close(ours.encode_embedded(embedded)[range(5), ends], ours.encode_embedded(embedded, ends))


def test_a_text_beyond_the_context_is_refused() -> None:
    ours, _ = build(PLAIN)
    with pytest.raises(ValueError, match=r"texts of 13 tokens .* which reads 12"):
        ours.embed_tokens(torch.ones(1, 13, dtype=torch.int64))
