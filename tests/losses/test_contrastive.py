"""The losses against naive full matrices, published numbers and several ranks."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, multiprocessing
from torch import distributed as dist
from torch.nn import functional as F  # noqa: N812
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import contrastive as benchmark
from clip4vla.losses import contrastive
from clip4vla.losses.contrastive import NO_ID, info_nce, multi_positive_info_nce, nt_xent

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
@pytest.mark.parametrize("block_size", [1, 4, 11, 512])
def test_blocks_equal_the_full_matrix(loss: Loss, naive: Loss, mask: str, block_size: int) -> None:
    inputs, valid = leaves(), torch.tensor(MASKS[mask], dtype=torch.bool)
    got, expected = loss(*inputs, valid=valid, block_size=block_size), naive(*inputs, valid)
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


@pytest.mark.parametrize("loss", [info_nce, nt_xent])
def test_wrong_shapes_are_refused(loss: Loss) -> None:
    a, b, scale = leaves()
    with pytest.raises(ValueError, match=r"shape \(10, 7\), required: \(11, 7\)"):
        loss(a, b[:10], scale)
    with pytest.raises(ValueError, match=r"mask of valid rows has shape \(10,\), required: \("):
        loss(a, b, scale, valid=torch.ones(10 if loss is info_nce else 5, dtype=torch.bool))


# several positives


@dataclass(frozen=True)
class Sentences:
    """Texts and clips with ids, and which of them are valid."""

    text_ids: Tensor
    clip_ids: Tensor
    valid_texts: Tensor
    valid_clips: Tensor

    @staticmethod
    def drawn(clips: int, seed: int = 3) -> "Sentences":
        """Two texts and up to four sentences a clip, of few: many occur in several clips, some twice in one."""
        generator = torch.Generator().manual_seed(seed)
        clip_ids = torch.randint(0, 2 * clips, (clips, 4), generator=generator)
        text_ids = clip_ids[:, :2].flatten().clone()
        clip_ids[:, 3] = torch.where(torch.arange(clips) % 2 == 0, NO_ID, clip_ids[:, 0])
        return Sentences(text_ids, clip_ids, torch.ones(2 * clips).bool(), torch.ones(clips).bool())

    def leaves(self, dtype: torch.dtype = torch.float64, scale: float = 9.0) -> Leaves:
        generator = torch.Generator().manual_seed(5)
        texts, clips = (
            F.normalize(torch.randn(len(ids), 7, generator=generator, dtype=torch.float64), dim=1).to(dtype)
            for ids in (self.text_ids, self.clip_ids)
        )
        return texts.requires_grad_(), clips.requires_grad_(), torch.tensor([scale], dtype=dtype, requires_grad=True)

    def loss(self, inputs: Leaves, **options: Any) -> Tensor:
        return multi_positive_info_nce(*inputs, **vars(self), **options)

    def naive(self, inputs: Leaves) -> Tensor:
        """By full matrices, of logits and of positives."""
        texts, clips, scale = inputs
        right = (self.text_ids[:, None, None] == self.clip_ids).any(2) & (self.text_ids != NO_ID)[:, None]
        right = right[self.valid_texts][:, self.valid_clips].to(texts.dtype)
        logits = scale * texts[self.valid_texts] @ clips[self.valid_clips].T
        return (one_direction(logits, right) + one_direction(logits.T, right.T)) / 2


def one_direction(logits: Tensor, right: Tensor) -> Tensor:
    answered = right.sum(1) > 0
    if not answered.any():
        return logits.sum() * 0
    losses = -(logits.log_softmax(1) * right).sum(1)[answered] / right.sum(1)[answered]
    return losses.mean()


def assert_exact(sentences: Sentences, inputs: Leaves, **options: Any) -> None:
    got, expected = sentences.loss(inputs, **options), sentences.naive(inputs)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, inputs), gradients(expected, inputs))


@pytest.mark.parametrize("block_size", [1, 4, 22, None])
def test_several_positives_equal_the_full_matrix(block_size: int | None) -> None:
    sentences = Sentences.drawn(11)
    assert_exact(sentences, sentences.leaves(), block_size=block_size)


IDS = st.integers(NO_ID, 4)


@st.composite
def any_sentences(draw: st.DrawFn) -> Sentences:
    texts, clips, width = draw(st.integers(1, 9)), draw(st.integers(1, 6)), draw(st.integers(0, 3))
    text_ids = draw(st.lists(IDS, min_size=texts, max_size=texts))
    clip_ids = draw(st.lists(st.lists(IDS, min_size=width, max_size=width), min_size=clips, max_size=clips))
    valid = [draw(st.lists(st.booleans(), min_size=size, max_size=size)) for size in (texts, clips)]
    return Sentences(
        torch.tensor(text_ids),
        torch.tensor(clip_ids, dtype=torch.int64).view(clips, width),
        *(torch.tensor(mask) for mask in valid),
    )


@given(any_sentences(), st.integers(1, 4))
@settings(max_examples=200, deadline=None)
def test_any_sentences_equal_the_full_matrix(sentences: Sentences, block_size: int) -> None:
    assert_exact(sentences, sentences.leaves(), block_size=block_size)


@given(st.sets(IDS), st.lists(st.lists(IDS, min_size=3, max_size=3)))
@settings(max_examples=200, deadline=None)
def test_the_join_finds_each_pair_once(distinct: set[int], table: list[list[int]]) -> None:
    names, ids = torch.tensor(sorted(distinct), dtype=torch.int64), torch.tensor(table, dtype=torch.int64).view(-1, 3)
    places, rows = contrastive._join(names, *contrastive._distinct_in_rows(ids))
    found = sorted(zip(names[places].tolist(), rows.tolist(), strict=True))
    assert found == sorted((id_, row) for row, ids in enumerate(table) for id_ in set(ids) & distinct - {NO_ID})


@pytest.mark.parametrize("mask", MASKS)
def test_one_positive_is_info_nce(mask: str) -> None:
    inputs, valid = leaves(), torch.tensor(MASKS[mask], dtype=torch.bool)
    ids = torch.randperm(11, generator=torch.Generator().manual_seed(0)) * 2**58
    got = Sentences(ids, ids.unsqueeze(1), valid, valid).loss(inputs)
    torch.testing.assert_close(got, naive_info_nce(*inputs, valid))


def test_masks_are_optional() -> None:
    sentences = Sentences.drawn(11)
    inputs = sentences.leaves()
    got = multi_positive_info_nce(*inputs, text_ids=sentences.text_ids, clip_ids=sentences.clip_ids)
    assert got.equal(sentences.loss(inputs))


def test_a_text_without_a_valid_clip_is_a_negative_until_it_is_invalid() -> None:
    """Text 2 has one clip, which is invalid; text 1 has an invalid one and a valid one."""
    ids, clip_ids = torch.tensor([0, 1, 2]), torch.tensor([[0, 1], [1, 2]])
    inputs = Sentences.drawn(3).leaves()
    texts, clips, scale = inputs[0][:3], inputs[1][:2], inputs[2]
    first = torch.tensor([True, False])
    logits = scale * texts @ clips[0]
    got = Sentences(ids, clip_ids, torch.ones(3).bool(), first).loss((texts, clips, scale))
    torch.testing.assert_close(got, (logits.logsumexp(0) - logits[:2].mean()) / 2)
    without = Sentences(ids, clip_ids, torch.tensor([True, True, False]), first).loss((texts, clips, scale))
    torch.testing.assert_close(without, (logits[:2].logsumexp(0) - logits[:2].mean()) / 2)


def test_several_positives_refuse_wrong_shapes() -> None:
    sentences = Sentences.drawn(11)
    texts, clips, scale = sentences.leaves()
    with pytest.raises(ValueError, match=r"text_ids has shape \(22,\), required: \(21,\)"):
        sentences.loss((texts[:21], clips, scale))
    with pytest.raises(ValueError, match=r"clip_ids has shape \(11, 4\), required: \(10, 4\)"):
        sentences.loss((texts, clips[:10], scale))
    with pytest.raises(ValueError, match=r"clips has shape \(11, 6\), required: \(11, 7\)"):
        sentences.loss((texts, clips[:, :6], scale))


# numbers of less than 64 bits


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_single_precision(scale: float) -> None:
    sentences = Sentences.drawn(40)
    inputs = sentences.leaves(torch.float32, scale)
    got, double = sentences.loss(inputs, block_size=16), sentences.leaves(torch.float64, scale)
    expected = sentences.naive(double)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)
    for single, exact in zip(gradients(got, inputs), gradients(expected, double), strict=True):
        torch.testing.assert_close(single.double(), exact, rtol=0, atol=2e-5 * exact.abs().max().item())


@pytest.mark.parametrize(("loss", "naive"), LOSSES)
def test_an_outlier_at_the_largest_scale_does_not_underflow(loss: Loss, naive: Loss) -> None:
    """The last b is opposite to all but its partner, which is orthogonal to all: float32's exponential spans 87."""
    a, b = torch.eye(7)[[0, 0, 0, 1]], torch.eye(7)[[0, 0, 0, 0]]
    b[3] *= -1
    inputs = (a.requires_grad_(), b.requires_grad_(), torch.tensor([100.0], requires_grad=True))
    got, expected = loss(*inputs, block_size=2), naive(*(leaf.double() for leaf in inputs), torch.ones(4).bool())
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradients(got, inputs), gradients(expected, inputs), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_features_are_compared_in_single(autocast: bool) -> None:
    sentences = Sentences.drawn(11)
    half = sentences.leaves(torch.bfloat16)
    single: Leaves = tuple(leaf.detach().float().requires_grad_() for leaf in half)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        got = sentences.loss(half)
        found = gradients(got, half)
    expected = sentences.naive(single)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)
    exact = gradients(expected, single)
    torch.testing.assert_close(found, [gradient.bfloat16() for gradient in exact], rtol=0.01, atol=1e-6)


@pytest.mark.parametrize("loss", [info_nce, nt_xent])
def test_mixed_precision_is_compared_in_the_wider(loss: Loss) -> None:
    a, b, scale = (leaf.detach() for leaf in leaves())
    if loss is info_nce:
        assert loss(a.float(), b, scale).dtype == torch.float64
    assert loss(a.half(), b.half(), scale).dtype == torch.float32


# memory


class LargestTensor(TorchDispatchMode):
    """Elements of the largest result of any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(part, Tensor):
                self.elements = max(self.elements, part.untyped_storage().nbytes() // part.element_size())
        return result


@pytest.mark.parametrize("different", [1, 10**6])
def test_no_matrix_of_all_pairs_is_held(different: int) -> None:
    rows = 600
    ids = torch.arange(rows) % different
    with LargestTensor() as largest:
        sentences = Sentences(ids, torch.stack([ids, ids + 1, ids + 2], 1), *torch.ones(2, rows).bool())
        sentences.loss(sentences.leaves(), block_size=40).backward()
    assert rows * 7 <= largest.elements < rows * rows / 16


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


Case = tuple[str, str]
Share = list[Tensor]


def one_rank(rank: int, ranks: int, port: int, directory: str) -> None:
    """Save this rank's share and gradients of each case, on its slice of the rows."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    results: dict[Case, Share] = {}
    for loss in (info_nce, nt_xent):
        for name, valid in distributed_masks(ranks).items():
            a, b, scale = leaves(len(valid))
            mine = rows_of(rank, ranks, valid)
            share = loss(a[mine], b[mine], scale, valid=valid[mine], block_size=2)
            results[loss.__name__, name] = [share.detach(), *gradients(share, (a, b, scale))]
    for name, sentences in distributed_sentences(ranks).items():
        texts, clips, scale = inputs = sentences.leaves()
        mine = {key: value[rows_of(rank, ranks, value)] for key, value in vars(sentences).items()}
        mine["clip_ids"] = mine["clip_ids"] if rank == 0 else mine["clip_ids"][:, :3]  # as narrow as they may be
        of_texts, of_clips = (rows_of(rank, ranks, vectors) for vectors in (texts, clips))
        share = Sentences(**mine).loss((texts[of_texts], clips[of_clips], scale), block_size=2)
        results["multi_positive_info_nce", name] = [share.detach(), *gradients(share, inputs)]
    torch.save(results, Path(directory) / f"{rank}.pt")
    dist.destroy_process_group()


def rows_of(rank: int, ranks: int, rows: Tensor) -> slice:
    return slice(rank * len(rows) // ranks, (rank + 1) * len(rows) // ranks)


def distributed_masks(ranks: int) -> dict[str, Tensor]:
    """Every row, some, those of the last rank only, and none."""
    rows = 3 * ranks
    some = torch.arange(rows) % 3 != 1
    some[0] = False
    last = torch.arange(rows) >= rows - 3
    return {"all": torch.ones(rows).bool(), "some": some, "last rank": last, "none": torch.zeros(rows).bool()}


def distributed_sentences(ranks: int) -> dict[str, Sentences]:
    """Sentences that occur on several ranks, with each mask on the texts, the clips, or both."""
    drawn = vars(Sentences.drawn(3 * ranks))
    drawn["clip_ids"][3:, 3] = NO_ID  # narrower on the other ranks
    drawn["text_ids"][0] = drawn["text_ids"][-1]
    cases = {}
    for name, mask in distributed_masks(ranks).items():
        texts = mask.flip(0).repeat_interleave(2)
        texts[1] = False
        cases[f"{name} clips"] = Sentences(**drawn | {"valid_clips": mask})
        cases[f"{name} texts"] = Sentences(**drawn | {"valid_texts": texts})
        cases[f"{name} clips and texts"] = Sentences(**drawn | {"valid_clips": mask, "valid_texts": texts})
    return cases


def expected_sums(ranks: int) -> dict[Case, Share]:
    """Loss and gradients over all rows, by full matrices."""
    results: dict[Case, Share] = {}
    for loss, naive in ((info_nce, naive_info_nce), (nt_xent, naive_nt_xent)):
        for name, valid in distributed_masks(ranks).items():
            inputs = leaves(len(valid))
            value = naive(*inputs, valid) if valid.any() else sum(leaf.sum() for leaf in inputs) * 0
            results[loss.__name__, name] = [value.detach(), *gradients(value, inputs)]
    for name, sentences in distributed_sentences(ranks).items():
        inputs = sentences.leaves()
        value = sentences.naive(inputs)
        results["multi_positive_info_nce", name] = [value.detach(), *gradients(value, inputs)]
    return results


SLOW = [pytest.param(ranks, marks=pytest.mark.slow) for ranks in (1, 2)]


@pytest.mark.parametrize("ranks", [*SLOW, 3])
def test_ranks_add_up_to_the_full_matrix(ranks: int, tmp_path: Path) -> None:
    multiprocessing.spawn(one_rank, args=(ranks, free_port(), str(tmp_path)), nprocs=ranks)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]
    for case, expected in expected_sums(ranks).items():
        summed = [sum(parts) for parts in zip(*(share[case] for share in shares), strict=True)]
        torch.testing.assert_close(summed, expected, msg=lambda text, case=case: f"{case}: {text}")


# the benchmark


def test_the_benchmark_compares_the_same_loss() -> None:
    ids = benchmark.shared_sentences(12)
    inputs = Sentences.drawn(6).leaves()
    inputs = (inputs[0], inputs[0].flip(0), inputs[2])
    got = multi_positive_info_nce(*inputs, **ids)
    torch.testing.assert_close(got, benchmark.naive_multi_positive_info_nce(*inputs, **ids))


@pytest.mark.gpu
@pytest.mark.parametrize(("loss", "naive"), LOSSES)
def test_a_gpu_gives_the_loss_and_the_gradients_of_double_precision(loss: Loss, naive: Loss) -> None:
    inputs, valid = leaves(700), torch.arange(700) % 5 != 0
    expected = naive(*inputs, valid)
    on_gpu = tuple(leaf.detach().float().cuda().requires_grad_() for leaf in inputs)
    got = loss(*on_gpu, valid=valid.cuda(), block_size=64)
    torch.testing.assert_close(got.double().cpu(), expected, rtol=1e-5, atol=1e-6)
    for ours, gradient in zip(gradients(got, on_gpu), gradients(expected, inputs), strict=True):
        torch.testing.assert_close(ours.double().cpu(), gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [4, 512])
def test_a_gpu_gives_the_loss_of_several_positives(block_size: int) -> None:
    ids = {name: values.cuda() for name, values in benchmark.shared_sentences(300).items()}
    on_gpu = tuple(leaf.detach().float().cuda().requires_grad_() for leaf in leaves(300))
    got = multi_positive_info_nce(*on_gpu, **ids, block_size=block_size)
    expected = benchmark.naive_multi_positive_info_nce(*on_gpu, **ids)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, on_gpu), gradients(expected, on_gpu))
