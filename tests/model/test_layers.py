"""The towers' layers against torch's own, with gradients."""

import pytest
import torch
from torch import Tensor, nn

from clip4vla.model.layers import PartialEmbedding, PatchEmbedding, SelfAttention


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(module: nn.Module, inputs: Tensor, outputs: Tensor) -> list[Tensor]:
    """By the input and all parameters."""
    loss = (outputs * normal(*outputs.shape, seed=1)).sum()
    return list(torch.autograd.grad(loss, [inputs, *module.parameters()]))


CAUSAL = torch.full((5, 5), -torch.inf, dtype=torch.float64).triu(1)


@pytest.mark.parametrize("mask", [None, CAUSAL, CAUSAL.T.repeat(4 * 3, 1, 1)], ids=["none", "common", "by sequence"])
def test_self_attention_is_torchs(mask: Tensor | None) -> None:
    torch.manual_seed(0)
    torchs = nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    nn.init.normal_(torchs.in_proj_bias)
    ours = SelfAttention(12, 3).double()
    ours.load_state_dict(torchs.state_dict())
    hidden = normal(4, 5, 12).requires_grad_()
    expected = torchs(hidden, hidden, hidden, need_weights=False, attn_mask=mask)[0]
    found = ours(hidden, mask)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(ours, hidden, found), gradients(torchs, hidden, expected))
    with torch.no_grad():
        assert torch.equal(
            ours(hidden, mask),
            torchs(hidden, hidden, hidden, need_weights=False, attn_mask=mask)[0],
        )


@pytest.mark.parametrize("height", [12, 8])
def test_patch_embedding_is_the_convolution(height: int) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 7, kernel_size=4, stride=4, bias=False, dtype=torch.float64)
    ours = PatchEmbedding(7, 4).double()
    ours.load_state_dict(convolution.state_dict())
    images = normal(2, 3, height, 12).requires_grad_()
    expected, found = convolution(images), ours(images)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(ours, images, found), gradients(convolution, images, expected))


def test_a_partial_embedding_trains_its_rows_and_leaves_the_others() -> None:
    whole = nn.Embedding(9, 4)
    part = PartialEmbedding(whole, torch.tensor([7, 0, 3]))
    tokens = torch.tensor([[3, 3], [7, 0]])
    torch.testing.assert_close(part(tokens), whole(tokens))
    part(tokens).sum().backward()
    whole(tokens).sum().backward()
    assert part.weight.grad is not None
    assert whole.weight.grad is not None
    torch.testing.assert_close(part.weight.grad, whole.weight.grad[[7, 0, 3]])
    after = part.whole(part.weight + 1) - whole.weight
    assert (after[[7, 0, 3]] - 1).abs().max() < 1e-6
    assert not after[[1, 2, 4, 5, 6, 8]].any()


def test_a_token_outside_of_a_partial_embedding_is_an_error() -> None:
    part = PartialEmbedding(nn.Embedding(9, 4), torch.tensor([7, 0, 3]))
    with pytest.raises(IndexError):
        part(torch.tensor([1]))
