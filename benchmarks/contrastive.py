"""`python -m benchmarks.contrastive`: time and memory of the contrastive loss, forward and backward, by batch size.

The blockwise loss that training uses against the naive one, which holds full similarity matrices; where both are run,
also with sentences that several clips share. Memory is what a pass needs beyond the vectors themselves. Where the naive
loss isn't run, its memory is the one at the largest batch where it was, times the growth of batch x batch.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from benchmarks.measure import add_device, median_seconds, peak_bytes, report
from clip4vla.losses.contrastive import info_nce, multi_positive_info_nce

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def naive_info_nce(a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    """Symmetric InfoNCE over full (B, B) matrices, as it is usually implemented."""
    logits = scale * a @ b.T
    target = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def naive_multi_positive_info_nce(
    texts: Tensor, clips: Tensor, scale: Tensor, *, text_ids: Tensor, clip_ids: Tensor
) -> Tensor:
    """The same with a (B, B) matrix of which text is right for which clip."""
    logits = scale * texts @ clips.T
    right = torch.zeros_like(logits)
    for ids in clip_ids.T:
        right += text_ids.unsqueeze(1) == ids
    to_clips = (logits.log_softmax(1) * right).sum(1) / right.sum(1)
    to_texts = (logits.log_softmax(0) * right).sum(0) / right.sum(0)
    return -(to_clips.mean() + to_texts.mean()) / 2


def shared_sentences(batch: int) -> dict[str, Tensor]:
    """Ids of a text of each clip, and of three sentences a clip, each sentence being that of three clips."""
    ids = torch.arange(batch)
    return {"text_ids": ids, "clip_ids": torch.stack([ids, (ids + 1) % batch, (ids + 2) % batch], dim=1)}


def pass_of(loss: Loss, batch: int, width: int, device: torch.device) -> Callable[[], None]:
    """A forward and backward pass of `loss` over a batch of unit vectors."""
    generator = torch.Generator().manual_seed(0)
    a, b = (
        F.normalize(torch.randn(batch, width, generator=generator), dim=1).to(device).requires_grad_() for _ in "ab"
    )
    scale = torch.full((1,), 20.0, device=device, requires_grad=True)

    def run() -> None:
        for leaf in (a, b, scale):
            leaf.grad = None
        loss(a, b, scale).backward()

    return run


def measure(loss: Loss, batch: int, width: int, device: torch.device, repeats: int) -> dict[str, float | None]:
    """Milliseconds and bytes of one pass."""
    run = pass_of(loss, batch, width, device)
    run()  # what is set up once counts for neither
    held = peak_bytes(run, device)
    return {"ms": 1e3 * median_seconds(run, device, warmup=0, repeats=repeats), "bytes": held}


def compare(batch: int, naive_too: bool, width: int, device: torch.device, repeats: int) -> dict[str, Any]:
    """Both losses at one batch size; the naive one is None where it isn't run or doesn't fit a GPU."""
    figures = measure_both(info_nce, naive_info_nce if naive_too else None, batch, width, device, repeats)
    if naive_too:
        ids: dict[str, Any] = {name: values.to(device) for name, values in shared_sentences(batch).items()}
        blockwise, naive = partial(multi_positive_info_nce, **ids), partial(naive_multi_positive_info_nce, **ids)
        figures["multi_positive"] = measure_both(blockwise, naive, batch, width, device, repeats)
    return {"batch": batch, **figures}


def measure_both(
    blockwise: Loss, naive: Loss | None, batch: int, width: int, device: torch.device, repeats: int
) -> dict[str, Any]:
    """Figures of each, and how many times the blockwise loss's time the naive one needs."""
    figures: dict[str, Any] = {"blockwise": measure(blockwise, batch, width, device, repeats), "naive": None}
    if naive is not None:
        with suppress(torch.OutOfMemoryError):
            figures["naive"] = measure(naive, batch, width, device, repeats)
            figures["times_faster"] = figures["naive"]["ms"] / figures["blockwise"]["ms"]
    return figures


def add_memory_ratios(rows: list[dict[str, Any]]) -> None:
    """How many times the blockwise loss's memory the naive one needs, measured or by batch x batch."""
    measured = [row for row in rows if row["naive"] and row["naive"]["bytes"]]
    for row in rows:
        if measured and row["blockwise"]["bytes"]:
            nearest = row if row in measured else max(measured, key=lambda other: other["batch"])
            naive_bytes = nearest["naive"]["bytes"] * (row["batch"] / nearest["batch"]) ** 2
            row["naive_memory_is"] = "measured" if nearest is row else "extrapolated"
            row["times_less_memory"] = naive_bytes / row["blockwise"]["bytes"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the losses at every batch size, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.contrastive", description=__doc__)
    add_device(parser)
    parser.add_argument("--batches", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--naive-up-to", type=int, default=16384, help="it needs about 16 bytes x batch x batch")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    settings = parser.parse_args(arguments)
    rows = [
        compare(batch, batch <= settings.naive_up_to, settings.width, settings.device, settings.repeats)
        for batch in settings.batches
    ]
    add_memory_ratios(rows)
    report("contrastive", settings.device, settings, {"batches": rows})


if __name__ == "__main__":
    main()
