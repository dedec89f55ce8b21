"""Muon against singular values, torch's own, and itself on other shapes."""

from typing import Any

import pytest
import torch
from torch import nn

from clip4vla.training import muon
from clip4vla.training.muon import RMS, Muon, orthogonalise

SETTINGS: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.2, "fused": True}
SHAPES = ((24, 24), (24, 24), (40, 16), (16, 40))


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def go_on(optimizer: torch.optim.Optimizer, trained: list[nn.Parameter], steps: range) -> list[torch.Tensor]:
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for weight in trained:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step()
    return [weight.detach().clone() for weight in trained]


@pytest.mark.parametrize("shape", [(24, 24), (40, 16), (16, 40)])
def test_singular_values_become_ones_and_vectors_stay(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    found = orthogonalise(matrices)
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    values = u.mT @ found @ v.mT
    diagonal = values.diagonal(dim1=1, dim2=2)
    assert ((diagonal - 1).abs() < 0.4).all()
    assert (values - torch.diag_embed(diagonal)).abs().max() < 1e-4


def test_a_matrix_of_zeros_stays_one() -> None:
    assert torch.equal(orthogonalise(torch.zeros(2, 4, 3)), torch.zeros(2, 4, 3))


def test_it_is_torchs_muon_but_for_bfloat16() -> None:
    own, torchs = weights(), weights()
    before = weights()
    found = go_on(Muon([{"params": own, "matrices": 1}], **SETTINGS), own, range(4))
    settings = {"lr": 1e-2, "weight_decay": 0.2, "adjust_lr_fn": "match_rms_adamw"}
    expected = go_on(torch.optim.Muon(torchs, **settings), torchs, range(4))
    for mine, other, start in zip(found, expected, before, strict=True):
        assert (mine - other).norm() < 0.02 * (mine - start).norm()


def test_matrices_are_cut_out_of_a_weight() -> None:
    stacked = nn.Parameter(torch.randn(12, 4, generator=torch.Generator().manual_seed(2)))
    apart = [nn.Parameter(part.clone()) for part in stacked.detach().chunk(3)]
    gradient = torch.randn(12, 4, generator=torch.Generator().manual_seed(3))
    stacked.grad = gradient
    for part, of_it in zip(apart, gradient.chunk(3), strict=True):
        part.grad = of_it.clone()
    Muon([{"params": [stacked], "matrices": 3}], **SETTINGS).step()
    Muon([{"params": apart, "matrices": 1}], **SETTINGS).step()
    assert torch.equal(stacked.detach(), torch.cat([part.detach() for part in apart]))


def test_an_update_has_the_size_of_adamws() -> None:
    (weight,) = trained = [nn.Parameter(torch.zeros(64, 64))]
    go_on(Muon([{"params": trained, "matrices": 1}], **SETTINGS), trained, range(1))
    assert float(weight.detach().square().mean().sqrt()) == pytest.approx(RMS * SETTINGS["lr"], rel=0.2)


def test_other_weights_are_adamws_and_those_without_gradient_stay() -> None:
    generator = torch.Generator().manual_seed(4)
    own, torchs = ([nn.Parameter(torch.ones(5, 3)), nn.Parameter(torch.ones(7))] for _ in range(2))
    still = nn.Parameter(torch.ones(6, 6))
    optimizer = Muon([{"params": own}, {"params": [still], "matrices": 1}], **SETTINGS)
    for mine, other in zip(own, torchs, strict=True):
        mine.grad = torch.randn(mine.shape, generator=generator)
        other.grad = mine.grad.clone()
    optimizer.step()
    torch.optim.AdamW(torchs, **SETTINGS).step()
    assert all(torch.equal(mine, other) for mine, other in zip(own, torchs, strict=True))
    assert torch.equal(still, torch.ones(6, 6))


def test_how_many_go_at_once_makes_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    together, apart = weights(), weights()
    expected = go_on(Muon([{"params": together, "matrices": 1}], **SETTINGS), together, range(3))
    monkeypatch.setattr(muon, "NUMBERS_AT_ONCE", 1)
    found = go_on(Muon([{"params": apart, "matrices": 1}], **SETTINGS), apart, range(3))
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other)


def test_its_state_is_saved_and_goes_on() -> None:
    through, stopped = weights(), weights()
    expected = go_on(Muon([{"params": through, "matrices": 1}], **SETTINGS), through, range(4))
    first = Muon([{"params": stopped, "matrices": 1}], **SETTINGS)
    go_on(first, stopped, range(2))
    again = Muon([{"params": stopped, "matrices": 1}], **SETTINGS)
    again.load_state_dict(first.state_dict())
    found = go_on(again, stopped, range(2, 4))
    assert all(map(torch.equal, found, expected))
