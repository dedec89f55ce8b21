"""The losses against naive full matrices, published numbers and several ranks."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist
from torch.nn import functional as F  # noqa: N812

from clip4vla.losses.contrastive import info_nce, nt_xent

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
Loss = Callable[..., Tensor]
Leaves = tuple[Tensor, Tensor, Tensor]


def naive_info_nce(a: Tensor, b: Tensor, scale: Tensor, valid: Tensor) -> Tensor:
    logits = scale * a[valid] @ b[valid].T
    labels = torch.arange(len(logits))
    return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2


def naive_nt_xent(a: Tensor, b: Tensor, scale: Tensor, valid: Tensor) -> Tensor:
    vectors = torch.cat([a[valid], b[valid]])
    logits = (scale * vectors @ vectors.T).fill_diagonal_(-torch.inf)
    return F.cross_entropy(logits, torch.arange(len(vectors)).roll(len(vectors) // 2))


LOSSES = [pytest.param(info_nce, naive_info_nce, id="info_nce"), pytest.param(nt_xent, naive_nt_xent, id="nt_xent")]
MASKS = {"all": [1] * 11, "some": [1, 0, 1, 1, 0, 0, 1, 1, 1, 0, 1], "one": [0, 0, 0, 1] + [0] * 7}


def leaves(rows: int = 11) -> Leaves:
    generator = torch.Generator().manual_seed(5)
    a, b = (F.normalize(torch.randn(rows, 7, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    return a.requires_grad_(), b.requires_grad_(), torch.tensor([9.0], dtype=torch.float64, requires_grad=True)


def gradients(loss: Tensor, inputs: Leaves) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize(("loss", "naive"), LOSSES)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("block_rows", [1, 4, 11, 512])
def test_blocks_equal_the_full_matrix(loss: Loss, naive: Loss, mask: str, block_rows: int) -> None:
    inputs, valid = leaves(), torch.tensor(MASKS[mask], dtype=torch.bool)
    got, expected = loss(*inputs, valid=valid, block_rows=block_rows), naive(*inputs, valid)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("loss", [info_nce, nt_xent])
def test_no_valid_row_is_zero_with_a_graph(loss: Loss) -> None:
    inputs = leaves()
    got = loss(*inputs, valid=torch.zeros(11, dtype=torch.bool))
    assert got.item() == 0
    assert all((gradient == 0).all() for gradient in gradients(got, inputs))


@pytest.mark.parametrize("loss", [info_nce, nt_xent])
def test_invalid_rows_change_nothing(loss: Loss) -> None:
    a, b, scale = leaves()
    valid = torch.tensor(MASKS["some"], dtype=torch.bool)
    changed = torch.where(valid.unsqueeze(1), a, -a)
    assert loss(a, b, scale, valid=valid).equal(loss(changed, b, scale, valid=valid))


def test_half_precision_features_are_compared_in_single() -> None:
    a, b, scale = (leaf.detach().bfloat16() for leaf in leaves())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = info_nce(a, b, scale)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, naive_info_nce(a.float(), b.float(), scale.float(), torch.ones(11).bool()))


# published numbers


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    with np.load(REFERENCE / "model.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files if key.startswith(("simclr/", "nce/"))}


def test_published_simclr(arrays: dict[str, Tensor]) -> None:
    from clip4vla.model.fusion import pool

    mask = arrays["simclr/mask"].bool()
    got = nt_xent(pool(arrays["simclr/x"], mask), pool(arrays["simclr/y"], mask), torch.tensor(100.0))
    torch.testing.assert_close(got, arrays["simclr/loss"], rtol=1e-5, atol=0)


def test_published_nce(arrays: dict[str, Tensor]) -> None:
    got = info_nce(arrays["nce/sim"], torch.eye(5), torch.tensor(1.0))
    expected = (arrays["nce/loss_rows"] + arrays["nce/loss_cols"]) / 2
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)


# several ranks


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def one_rank(rank: int, ranks: int, port: int, directory: str) -> None:
    """Save this rank's share and gradients of each loss and mask, on its slice of the rows."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    results = {}
    for loss in (info_nce, nt_xent):
        for name, valid in distributed_masks(ranks).items():
            a, b, scale = leaves(len(valid))
            mine = slice(rank * len(valid) // ranks, (rank + 1) * len(valid) // ranks)
            share = loss(a[mine], b[mine], scale, valid=valid[mine], block_rows=2)
            results[loss.__name__, name] = [share.detach(), *gradients(share, (a, b, scale))]
    torch.save(results, Path(directory) / f"{rank}.pt")
    dist.destroy_process_group()


def distributed_masks(ranks: int) -> dict[str, Tensor]:
    """Every row, some, those of the last rank only, and none."""
    rows = 3 * ranks
    some = torch.arange(rows) % 3 != 1
    last = torch.arange(rows) >= rows - 3
    return {"all": torch.ones(rows).bool(), "some": some, "last rank": last, "none": torch.zeros(rows).bool()}


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_ranks_add_up_to_one_process(ranks: int, tmp_path: Path) -> None:
    multiprocessing.spawn(one_rank, args=(ranks, free_port(), str(tmp_path)), nprocs=ranks)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]
    for loss in (info_nce, nt_xent):
        for name, valid in distributed_masks(ranks).items():
            inputs = leaves(len(valid))
            alone = loss(*inputs, valid=valid)
            expected = [alone.detach(), *gradients(alone, inputs)]
            summed = [sum(parts) for parts in zip(*(share[loss.__name__, name] for share in shares), strict=True)]
            torch.testing.assert_close(summed, expected, msg=lambda text, case=(loss, name): f"{case}: {text}")
