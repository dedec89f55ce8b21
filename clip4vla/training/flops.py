"""How much of what a device can compute a training uses: its useful FLOPs, counted, and its peak, looked up.

In: a model, what an objective asks of it, the shapes of a batch. Out: FLOPs of a step, from which follow

    FLOP/s = useful FLOPs of a rank's share of the step / seconds of the step
    MFU    = FLOP/s / peak FLOP/s of the rank's device

Useful is what the gradient needs: one forward and one backward pass of the model, a multiplication and an addition
counting as two. Counted are matrix products, convolutions and attention, of a batch as it is shaped, padding
included; the rest (norms, softmax, log-mel, losses, AdamW) is left out, as everywhere. Also left out is work that
saves memory but isn't needed: the first forward pass of cached gradients and recomputed activations. Training with
either keeps the chip busier than the MFU shows. Seconds are those of the clock, waiting for data included.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from clip4vla.audio.frontend import LogMel
from clip4vla.clips.batch import Batch
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.training.objectives import Objective

Precision = Literal["fp32", "bf16"]

PEAK_TFLOPS: Mapping[str, Mapping[Precision, float]] = {
    "NVIDIA H200": {"bf16": 989.4, "fp32": 66.9},
    "NVIDIA GH200 480GB": {"bf16": 989.4, "fp32": 66.9},
    "NVIDIA H100 80GB HBM3": {"bf16": 989.4, "fp32": 66.9},
    "NVIDIA H100 PCIe": {"bf16": 756.0, "fp32": 51.2},
    "NVIDIA A100-SXM4-40GB": {"bf16": 312.0, "fp32": 19.5},
    "NVIDIA A100-SXM4-80GB": {"bf16": 312.0, "fp32": 19.5},
    "NVIDIA A100-PCIE-40GB": {"bf16": 312.0, "fp32": 19.5},
    "NVIDIA A100 80GB PCIe": {"bf16": 312.0, "fp32": 19.5},
    "NVIDIA L40S": {"bf16": 362.0, "fp32": 91.6},
    "NVIDIA L4": {"bf16": 121.0, "fp32": 30.3},
    "NVIDIA A10": {"bf16": 125.0, "fp32": 31.2},
    "NVIDIA GeForce RTX 4090": {"bf16": 165.2, "fp32": 82.6},
    "NVIDIA GeForce RTX 3090": {"bf16": 71.0, "fp32": 35.6},
}
"""The makers' figures for dense products that add up in float32, by the whole name that the driver gives: a part of
a GPU has another name, and another peak. `fp32` is without TF32."""


def peak_flops(device: torch.device, precision: Precision, tflops: float | None = None) -> float | None:
    """Peak FLOP/s of a device, None where it isn't known.

    Args:
        device: a GPU of the table above; others, and CPUs, are unknown.
        precision: of the matrix products.
        tflops: `trainer.peak_tflops`, which overrides the table.
    """
    if tflops is not None:
        return tflops * 1e12
    tf32 = precision == "fp32" and torch.get_float32_matmul_precision() != "highest"
    if device.type != "cuda" or tf32:
        return None
    known = PEAK_TFLOPS.get(torch.cuda.get_device_name(device))
    return None if known is None else known[precision] * 1e12


class StepFlops:
    """Useful FLOPs of batches, counted once for each shape.

    A clip of the shape takes one forward and backward pass through a copy of the model that has shapes and no numbers
    (the meta device): exact for any architecture, without memory, and a matter of a second.
    """

    def __init__(self, model: Clip4Vla, objective: Objective) -> None:
        self._model = without_numbers(model.with_initial_weights)
        for copy, own in zip(self._model.parameters(), model.parameters(), strict=True):
            copy.requires_grad_(own.requires_grad)
        self._objective = objective
        self._per_clip: dict[tuple[int, ...], int] = {}

    def __call__(self, batch: Batch) -> int:
        """Useful FLOPs of the clips of `batch`."""
        shape = (batch.frames.shape[1], *batch.tokens.shape[1:])
        if shape not in self._per_clip:
            self._per_clip[shape] = self._count(batch[:1].to(torch.device("meta")))
        return len(batch) * self._per_clip[shape]

    def _count(self, clip: Batch) -> int:
        # a fused attention would count what it recomputes
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            outputs = self._objective.outputs(self._model, clip)
            torch.stack([part.sum() for part in outputs.values() if part.requires_grad]).sum().backward()
        return int(counter.get_total_flops())


def without_numbers(make: Callable[[], Clip4Vla]) -> Clip4Vla:
    """The model that `make` makes, in training, with shapes and no numbers (the meta device)."""
    with torch.device("meta"):
        model = make().train()
        model.log_mel = _Tiles(model.audio_config, model.image_size)
    return model


class _Tiles(LogMel):
    """In place of the front end, which needs numbers and whose work is not counted: tiles that have shapes only."""

    def forward(self, waveform: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        tiles = waveform.new_empty((len(samples), self.config.tiles, 3, self.rows, self.rows))
        return tiles, samples.unsqueeze(1) > samples.new_empty(self.config.tiles)

    def forward_views(
        self,
        waveform: Tensor,
        samples: Tensor,
        generator: torch.Generator | None = None,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor, Tensor]:
        tiles, audio_mask = self.forward(waveform, samples)
        return tiles, tiles, audio_mask
