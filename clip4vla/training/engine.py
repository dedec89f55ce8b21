"""DeepSpeed around the model: one optimizer step on a batch, checkpoints, the weights at the end.

In: a batch of this rank's clips. Out: the losses of the whole batch over all ranks. The only importer of deepspeed.

Gradients are cached (GradCache, Gao et al., arXiv 2101.06983): features of all micro-batches first, without a
graph; the loss over them gives their gradients; then each micro-batch passes again and takes its gradient back
through the towers. The result is that of one pass over the whole batch, in the memory of one micro-batch.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from torch import Tensor, nn
from torch import distributed as dist

from clip4vla.batch import Batch
from clip4vla.model.clip4vla import Clip4Vla, Features
from clip4vla.params import OptimizerParams, TrainerParams
from clip4vla.training.objective import Objective
from clip4vla.training.optimizer import parameter_groups

RandomState = tuple[Tensor, Tensor | None]


def join_ranks() -> tuple[int, int, torch.device]:
    """Join the process group that the launcher describes; rank, world size and this rank's device."""
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "0" if os.environ["WORLD_SIZE"] == "1" else "29500")
    on_gpu = torch.cuda.is_available()
    # compiled at start-up for 24 s, or hanging on a stale lock; gloo gives the same sums without it
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed("nccl" if on_gpu else "gloo", auto_mpi_discovery=False, verbose=False)
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    return dist.get_rank(), dist.get_world_size(), device


class _Views(nn.Module):
    """The model as the engine calls it: the objective's views of a micro-batch, and the logit scale."""

    def __init__(self, model: Clip4Vla, objective: Objective) -> None:
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Batch, generator: torch.Generator) -> tuple[Features, Tensor]:
        views, token = self.objective.views, self.objective.audio_token
        features = self.model(batch, audio_token=token, views=views, generator=generator)
        return features, self.model.scale()


class Engine:
    """A model in training.

    Args:
        model: on the CPU; moved to `device`.
        micro_batches: passes per step, the same on every rank.
    """

    def __init__(
        self,
        model: Clip4Vla,
        objective: Objective,
        optimizer: OptimizerParams,
        trainer: TrainerParams,
        micro_batches: int,
        device: torch.device,
    ) -> None:
        self.objective = objective
        self.device = device
        self.micro_batches = micro_batches
        self.half = trainer.precision == "bf16" or (trainer.precision == "auto" and device.type == "cuda")
        if trainer.activation_checkpointing:
            model.set_grad_checkpointing()
        groups = parameter_groups(model, model.new_parameters(), optimizer)
        adamw = torch.optim.AdamW(groups, betas=optimizer.betas, eps=optimizer.eps, fused=True)
        self._engine, *_ = deepspeed.initialize(
            model=_Views(model.to(device), objective),
            optimizer=adamw,
            config=_deepspeed_config(optimizer, trainer, micro_batches, self.half),
        )

    @property
    def model(self) -> Clip4Vla:
        """The model inside."""
        model: Clip4Vla = self._engine.module.model
        return model

    def step(self, batch: Batch, lr: float, seed: tuple[int, ...]) -> dict[str, float]:
        """One optimizer step on this rank's share of the batch, at rate `lr`.

        `seed` (step, rank) decides what is drawn at random on the way.

        Returns:
            The weighted losses over the clips of all ranks, by term, and their sum as `loss`.
        """
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr * group["lr_ratio"]
        pieces = [piece.to(self.device) for piece in _split(batch, self.micro_batches)]
        losses = self._step_whole(pieces[0], seed) if len(pieces) == 1 else self._step_cached(pieces, seed)
        return _over_ranks(losses | {"loss": Objective.total(losses)})

    def _step_whole(self, batch: Batch, seed: tuple[int, ...]) -> dict[str, Tensor]:
        features, scale = self._engine(batch, self._generator(seed))
        losses = self.objective.losses(features, scale)
        self._backward(Objective.total(losses) * dist.get_world_size())
        return losses

    def _step_cached(self, pieces: list[Batch], seed: tuple[int, ...]) -> dict[str, Tensor]:
        states: list[RandomState] = []
        parts: list[Features] = []
        with torch.no_grad():
            for index, piece in enumerate(pieces):
                states.append(_random_state(self.device))
                features, scale = self._engine(piece, self._generator((*seed, index)))
                parts.append(features)
        features = _as_leaves(Features.concatenate(parts))
        scale = scale.detach().requires_grad_()
        losses = self.objective.losses(features, scale)
        (Objective.total(losses) * dist.get_world_size()).backward()
        after = _random_state(self.device)
        for index, (piece, state) in enumerate(zip(pieces, states, strict=True)):
            _set_random_state(state, self.device)
            again, scale_again = self._engine(piece, self._generator((*seed, index)))
            rows = slice(index * len(pieces[0]), index * len(pieces[0]) + len(piece))
            surrogate = _inner_product(again, features, rows)
            if index == 0 and scale_again.requires_grad:
                surrogate = surrogate + (scale_again * scale.grad).sum()
            self._backward(surrogate)
        _set_random_state(after, self.device)
        return losses

    def _backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`; DeepSpeed steps when it has seen all micro-batches."""
        self._engine.backward(loss, scale_wrt_gas=False)
        self._engine.step()

    def _generator(self, seed: tuple[int, ...]) -> torch.Generator:
        mixed = hash(seed) & 0x7FFF_FFFF_FFFF_FFFF
        return torch.Generator(self.device).manual_seed(mixed)

    def save(self, directory: Path, step: int, state: Mapping[str, Any], keep: int) -> None:
        """Write the checkpoint of `step`, which is visible only when whole, and drop all but the last `keep`."""
        self._engine.save_checkpoint(str(directory), tag=f"step{step:09d}", client_state=dict(state))
        dist.barrier()
        if dist.get_rank() == 0:
            for old in sorted(directory.glob("step*"))[:-keep]:
                shutil.rmtree(old)

    def resume(self, directory: Path) -> dict[str, Any] | None:
        """Load the newest whole checkpoint; its state, or None where there is none."""
        if not (directory / "latest").is_file():
            return None
        path, state = self._engine.load_checkpoint(str(directory))
        if path is None:
            raise ValueError(f"the checkpoint in {directory} can't be loaded; remove it to begin anew")
        return dict(state)

    def collect_weights(self, scratch: Path) -> dict[str, Tensor] | None:
        """The model's float32 weights on rank 0, None on the others; ZeRO's parts pass through `scratch`."""
        if not self.half and self._engine.zero_optimization_stage() == 0:
            return self.model.state_dict() if dist.get_rank() == 0 else None
        self._engine.save_checkpoint(str(scratch), tag="final")
        dist.barrier()
        if dist.get_rank() != 0:
            return None
        weights = get_fp32_state_dict_from_zero_checkpoint(str(scratch), tag="final")
        return {name.removeprefix("model."): tensor for name, tensor in weights.items()}


def _deepspeed_config(
    optimizer: OptimizerParams, trainer: TrainerParams, micro_batches: int, half: bool
) -> dict[str, Any]:
    return {
        "train_micro_batch_size_per_gpu": 1,  # only their product with the micro-batches is checked, nothing is cut
        "gradient_accumulation_steps": micro_batches,
        "gradient_clipping": optimizer.clip_norm,
        # bf16 without ZeRO keeps no float32 weights to step on
        "zero_optimization": {"stage": max(1, trainer.zero_stage) if half else trainer.zero_stage},
        "bf16": {"enabled": half},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
    }


def _split(batch: Batch, pieces: int) -> list[Batch]:
    size = -(-len(batch) // pieces)
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def _random_state(device: torch.device) -> RandomState:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: RandomState, device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)


_VIEWS = ("text", "video", "audio", "audio_view", "both")


def _as_leaves(features: Features) -> Features:
    """The same features, each view a leaf that collects its gradient."""
    values = {f.name: getattr(features, f.name) for f in fields(features)}
    return Features(**{n: v.requires_grad_() if n in _VIEWS and v is not None else v for n, v in values.items()})


def _inner_product(again: Features, cached: Features, rows: slice) -> Tensor:
    """What has, in the towers' weights, the gradient that `cached` collected for its `rows`."""
    views = [(getattr(again, name), getattr(cached, name)) for name in _VIEWS]
    terms = [(new * old.grad[rows]).sum() for new, old in views if new is not None]
    return torch.stack(terms).sum()


def _over_ranks(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """The ranks' shares summed, in one exchange."""
    values = torch.stack([value.detach().float().reshape(()) for value in losses.values()])
    dist.all_reduce(values)
    return dict(zip(losses, values.tolist(), strict=True))
