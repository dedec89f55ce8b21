"""The likelihood under a mixture of experts, against full matrices and over ranks."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist
from torch.nn import functional as F  # noqa: N812

from clip4vla.losses.mixture import mixture_nll
from tests.losses.test_contrastive import Sentences, distributed_sentences, free_port, rows_of

EXPERTS, WIDTH = 3, 6
Inputs = tuple[Tensor, Tensor, Tensor, Tensor]


def leaves(sentences: Sentences, dtype: torch.dtype = torch.float64) -> Inputs:
    """Queries, logits of weights, clips and scale."""
    generator = torch.Generator().manual_seed(5)
    texts, clips = len(sentences.text_ids), len(sentences.clip_ids)
    queries = F.normalize(torch.randn(texts, EXPERTS, WIDTH, generator=generator, dtype=dtype), dim=2)
    vectors = F.normalize(torch.randn(clips, EXPERTS, WIDTH, generator=generator, dtype=dtype), dim=2)
    logits = torch.randn(texts, EXPERTS, generator=generator, dtype=dtype)
    return tuple(x.requires_grad_() for x in (queries, logits, vectors, torch.tensor([9.0], dtype=dtype)))  # type: ignore[return-value]


def loss_of(sentences: Sentences, inputs: Inputs, block_rows: int = 4, expectation: bool = False) -> Tensor:
    queries, logits, clips, scale = inputs
    options = {"block_rows": block_rows, "expectation": expectation}
    return mixture_nll(queries, logits.softmax(1), clips, scale, **vars(sentences), **options)


def naive(sentences: Sentences, inputs: Inputs, expectation: bool = False) -> Tensor:
    queries, logits, clips, scale = inputs
    keys = torch.ones(len(clips), dtype=torch.bool) if sentences.valid_clips is None else sentences.valid_clips
    right = (sentences.clip_ids[keys].unsqueeze(0) == sentences.text_ids[:, None, None]).any(2)
    if sentences.valid_texts is not None:
        right &= sentences.valid_texts.unsqueeze(1)
    if not right.any():
        return sum(leaf.sum() for leaf in inputs) * 0  # type: ignore[return-value]
    probability = torch.einsum("ned,ved->nev", queries, clips[keys]).mul(scale).softmax(2)
    weights = logits.softmax(1).unsqueeze(2)
    mixture = (weights * probability).sum(1).log()
    log_likelihood = (weights * probability.log()).sum(1) if expectation else mixture
    asked = right.any(1)
    return -((log_likelihood * right).sum(1)[asked] / right.sum(1)[asked]).mean()


def gradients(loss: Tensor, inputs: Inputs) -> list[Tensor]:
    return list(torch.autograd.grad(loss, inputs))


@pytest.mark.parametrize("expectation", [False, True])
@pytest.mark.parametrize("block_rows", [1, 4, 512])
def test_blocks_equal_the_full_matrix(block_rows: int, expectation: bool) -> None:
    sentences = Sentences.drawn(11)
    inputs = leaves(sentences)
    got, expected = loss_of(sentences, inputs, block_rows, expectation), naive(sentences, inputs, expectation)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, inputs), gradients(expected, inputs))


def test_one_expert_is_the_text_to_clip_direction_of_infonce() -> None:
    sentences = Sentences.drawn(5)
    queries, _, clips, scale = leaves(sentences)
    ones = torch.ones(len(queries), 1, dtype=queries.dtype)
    got = mixture_nll(queries[:, :1], ones, clips[:, :1], scale, **vars(sentences))
    right = (sentences.clip_ids.unsqueeze(0) == sentences.text_ids[:, None, None]).any(2)
    logs = (scale * queries[:, 0] @ clips[:, 0].T).log_softmax(1)
    asked = right.any(1)
    torch.testing.assert_close(got, -((logs * right).sum(1)[asked] / right.sum(1)[asked]).mean())


def test_a_sure_gate_asks_one_expert_only() -> None:
    sentences = Sentences.drawn(5)
    queries, _, clips, scale = leaves(sentences)
    sure = torch.tensor([1.0, 1e-12, 1e-12], dtype=queries.dtype).expand(len(queries), -1)
    alone = mixture_nll(queries[:, :1], sure[:, :1], clips[:, :1], scale, **vars(sentences))
    torch.testing.assert_close(mixture_nll(queries, sure, clips, scale, **vars(sentences)), alone)


def test_the_expectation_blames_each_expert_for_its_own_ranking() -> None:
    sentences = Sentences.drawn(5)
    inputs = leaves(sentences)
    (of_mixture,), (of_expectation,) = (
        torch.autograd.grad(loss_of(sentences, inputs, expectation=expectation), inputs[:1])
        for expectation in (False, True)
    )
    assert loss_of(sentences, inputs, expectation=True) > loss_of(sentences, inputs)
    assert not torch.allclose(of_mixture, of_expectation)


def test_mixed_precision_does_not_change_it() -> None:
    sentences = Sentences.drawn(5)
    inputs = leaves(sentences, torch.float32)
    expected = loss_of(sentences, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        got = loss_of(sentences, inputs)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradients(got, inputs), gradients(expected, inputs), rtol=0, atol=0)


def test_a_weight_of_0_has_finite_gradients() -> None:
    sentences = Sentences.drawn(5)
    inputs = leaves(sentences, torch.float32)
    with torch.no_grad():
        inputs[1][:, 1] -= 200
    assert (inputs[1].softmax(1)[:, 1] == 0).all()
    assert all(gradient.isfinite().all() for gradient in gradients(loss_of(sentences, inputs), inputs))


def one_rank(rank: int, ranks: int, port: int, directory: str) -> None:
    """Save this rank's share and gradients of each case, on its slice of the rows."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=ranks)
    results = {}
    for name, sentences in distributed_sentences(ranks).items():
        queries, logits, clips, scale = inputs = leaves(sentences)
        mine = {key: None if value is None else value[rows_of(rank, ranks, value)] for key, value in
                vars(sentences).items()}  # fmt: skip
        mine["clip_ids"] = mine["clip_ids"] if rank == 0 else mine["clip_ids"][:, :3]
        of_texts, of_clips = rows_of(rank, ranks, queries), rows_of(rank, ranks, clips)
        rows = (queries[of_texts], logits[of_texts], clips[of_clips], scale)
        for expectation in (False, True):
            share = loss_of(Sentences(**mine), rows, 2, expectation)
            results[name, expectation] = [share.detach(), *gradients(share, inputs)]
    torch.save(results, Path(directory) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_ranks_add_up_to_the_full_matrix(ranks: int, tmp_path: Path) -> None:
    multiprocessing.spawn(one_rank, args=(ranks, free_port(), str(tmp_path)), nprocs=ranks)
    shares = [torch.load(tmp_path / f"{rank}.pt") for rank in range(ranks)]
    for name, sentences in distributed_sentences(ranks).items():
        inputs = leaves(sentences)
        for expectation in (False, True):
            value = naive(sentences, inputs, expectation)
            expected = [value.detach(), *gradients(value, inputs)]
            summed = [sum(parts) for parts in zip(*(share[name, expectation] for share in shares), strict=True)]
            torch.testing.assert_close(summed, expected, msg=lambda text, name=name: f"{name}: {text}")
