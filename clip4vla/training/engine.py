"""DeepSpeed around the model: one optimizer step on a batch, checkpoints, the weights at the end.

In: a batch of this rank's clips. Out: the losses of the whole batch over all ranks. The only importer of deepspeed.

Gradients are cached (GradCache, Gao et al., arXiv 2101.06983): features of all micro-batches first, without a
graph; the loss over them gives their gradients; then each micro-batch passes again and takes its gradient back
through the towers. The result is that of one pass over the whole batch, in the memory of one micro-batch. Where a
clip's loss doesn't depend on other clips, gradients of the micro-batches are simply added up. What is
drawn at random is a function of (seed, step, rank, micro-batch), so that the second pass, and a resumed run, draw the
same.
"""

import logging
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.utils.serialization import config as load_settings

from clip4vla.clips.batch import Batch
from clip4vla.config import OptimizerConfig, TrainerConfig
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.training.checkpoints import (
    CheckpointMetadata,
    begin_checkpoint,
    checkpoint_name,
    finish_checkpoint,
    make_universal,
    newest_checkpoint,
)
from clip4vla.training.flops import Precision
from clip4vla.training.memory import MemoryPlan
from clip4vla.training.moments import AdamWOnDisk
from clip4vla.training.muon import Muon
from clip4vla.training.network import LOOPBACK, open_store, use_interface_towards
from clip4vla.training.objectives import Objective, total_loss
from clip4vla.training.optimizer import parameter_groups
from clip4vla.utils.files import sync_directory
from clip4vla.utils.imports import hidden
from clip4vla.utils.machine import return_freed_memory

with hidden("mlflow"):  # DeepSpeed's autotuner would import it: 1.4 s and 110 MB of a rank that records nothing
    import deepspeed
    from deepspeed.constants import default_pg_timeout
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

log = logging.getLogger(__name__)


def join_ranks(on_gpu: bool | None = None) -> tuple[int, int, torch.device]:
    """Join the process group that the launcher describes; rank, world size and this rank's device.

    The ranks listen on the network of MASTER_ADDR only. Rank 0 serves the store there, unless torchrun's agent does.

    Args:
        on_gpu: whether to train on a GPU; None: where there is one.
    """
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": LOOPBACK}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "0" if os.environ["WORLD_SIZE"] == "1" else "29500")
    on_gpu = torch.cuda.is_available() if on_gpu is None else on_gpu
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if on_gpu else torch.device("cpu")
    if on_gpu:
        torch.cuda.set_device(device)
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    address, port = socket.gethostbyname(os.environ["MASTER_ADDR"]), int(os.environ["MASTER_PORT"])
    use_interface_towards(address)
    agent_serves = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = open_store(address, port, hosts=rank == 0 and not agent_serves)
    # compiled at start-up for 24 s, or hanging on a stale lock; gloo gives the same sums without it
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend, bound = "nccl" if on_gpu else "gloo", device if on_gpu and world_size > 1 else None
    dist.init_process_group(
        backend, store=store, rank=rank, world_size=world_size, timeout=default_pg_timeout, device_id=bound
    )
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)
    return rank, world_size, device


@contextmanager
def after_rank_0(rank: int) -> Iterator[None]:
    """Have the block done by rank 0 first: the others then find the files that it writes there."""
    if rank != 0:
        dist.barrier()
    yield
    if rank == 0:
        dist.barrier()


class StepAbandonedError(Exception):
    """A step was left before its end; the weights are those of the step before."""


def _never() -> bool:
    return False


def _no_report(_what: str, _share: float) -> None:
    """The default of `step`'s `report`."""


class _ModelWithObjective(nn.Module):
    """The model as the engine calls it: the outputs of the objective for a micro-batch, and the logit scale.

    ZeRO 3 brings parameters back for the backward pass of a module when it finds tensors in what the module returned,
    in tuples and dicts. Some of the model's are read outside the module that owns them; they count as this module's.

    Args:
        half_products: compute products in bf16, on float32 weights. It happens here, because DeepSpeed switches an
            autocast off that is around the engine.
    """

    def __init__(self, model: Clip4Vla, objective: Objective, half_products: bool) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.half_products = half_products

    def forward(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor]:
        with torch.autocast(batch.frames.device.type, torch.bfloat16, enabled=self.half_products):
            outputs = self.objective.outputs(self.model, batch)
        if self.half_products:
            outputs = {name: value.float() if value.is_floating_point() else value for name, value in outputs.items()}
        return outputs, self.model.scale()


class Engine:
    """A model in training.

    Args:
        model: on the CPU; moved to `device`.
        micro_batches: passes per step, the same on every rank.
        plan: how a step is made to fit into memory.
        checkpoints: directory of this training's checkpoints, on a disk that all ranks see.
        found: the checkpoint to resume from, see `checkpoint_to_resume`.

    Raises:
        ValueError: there is a checkpoint that this engine can't resume from.
    """

    def __init__(
        self,
        model: Clip4Vla,
        objective: Objective,
        optimizer: OptimizerConfig,
        trainer: TrainerConfig,
        micro_batches: int,
        plan: MemoryPlan,
        device: torch.device,
        checkpoints: Path,
        found: CheckpointMetadata | None,
    ) -> None:
        self.objective = objective
        self.device = device
        self.micro_batches = micro_batches
        self.plan = plan
        self.precision: Precision = "bf16" if trainer.is_half(device.type == "cuda") else "fp32"
        self.zero_stage = trainer.zero_stage
        has_half_weights = trainer.has_half_weights(device.type == "cuda")
        # flags of ranks don't wait for a GPU
        self._host_ranks = dist.new_group(backend="gloo") if device.type == "cuda" else None
        self._enter_pass: Callable[[], None] = lambda: None
        self._checkpoints = checkpoints
        self._found = found
        self._converts = found is not None and not found.fits(dist.get_world_size(), self.zero_stage)
        model.recompute(plan.recomputed_blocks)
        if plan.is_tight and device.type == "cpu":
            return_freed_memory()
        self._compiled = _compile_towers(model, self.zero_stage) if trainer.compile else []
        groups = parameter_groups(model, optimizer)
        self._group_settings = [{key: group[key] for key in ("lr_ratio", "weight_decay")} for group in groups]
        self._adamw = self._build_adamw(groups, optimizer)
        self._engine, *_ = deepspeed.initialize(
            model=_ModelWithObjective(model.to(device), objective, self.precision == "bf16" and not has_half_weights),
            optimizer=self._adamw,
            config=self._config(optimizer, has_half_weights),
        )
        if self.zero_stage == 0 and dist.get_world_size() == 1:
            # it would copy all gradients into one tensor, to exchange them with nobody
            self._engine.enable_backward_allreduce = False

    def _build_adamw(self, groups: list[dict[str, Any]], optimizer: OptimizerConfig) -> torch.optim.AdamW:
        settings: dict[str, Any] = {"betas": optimizer.betas, "eps": optimizer.eps, "fused": True}
        if self.plan.moments_on_disk:
            return AdamWOnDisk(groups, self._checkpoints, **settings)
        if optimizer.name == "muon":
            return Muon(groups, **settings)
        return torch.optim.AdamW(groups, **settings)

    def _config(self, optimizer: OptimizerConfig, has_half_weights: bool) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": 1,  # only its product with the micro-batches is checked, nothing is cut
            "gradient_accumulation_steps": self.micro_batches,
            "gradient_clipping": optimizer.clip_norm,
            "zero_optimization": {"stage": self.zero_stage},
            "bf16": {"enabled": has_half_weights},
            "checkpoint": {"load_universal": self._converts},
            "zero_allow_untested_optimizer": True,
            "steps_per_print": 1_000_000_000,
        }

    @property
    def compiled(self) -> bool:
        """Whether the towers run compiled: it is configured, and none has fallen back."""
        return bool(self._compiled) and all(tower.runs_compiled for tower in self._compiled)

    @property
    def model(self) -> Clip4Vla:
        """The model inside."""
        model: Clip4Vla = self._engine.module.model
        return model

    def step(
        self,
        batch: Batch,
        lr: float,
        seed: tuple[int, ...],
        stop: Callable[[], bool] = _never,
        report: Callable[[str, float], None] = _no_report,
    ) -> dict[str, float]:
        """One optimizer step on this rank's share of the batch.

        Args:
            batch: the clips of this rank.
            lr: peak rate of the parameter groups, before their ratios.
            seed: (seed of the training, step, rank) decides what is drawn at random on the way.
            stop: asked before every pass but the first; where it is true on any rank, all ranks leave the step.
            report: called before every pass with its name and the share of the passes that are done.

        Returns:
            The weighted losses over the clips of all ranks, by term, and their sum as `loss`.

        Raises:
            ValueError: there are fewer clips than micro-batches.
            StepAbandonedError: the step was left. The weights have not changed; the engine can `save`, nothing else.
        """
        for group in self._adamw.param_groups:
            group["lr"] = lr * group["lr_ratio"]
        batch = batch.to(self.device)
        shares = _shares(len(batch), self.micro_batches)
        cached = self.objective.needs_all_clips and len(shares) > 1
        self._enter_pass = self._passes(len(shares), 2 if cached else 1, stop, report)
        losses = self._step_cached(batch, shares, seed) if cached else self._step_plain(batch, shares, seed)
        return _over_ranks(losses | {"loss": total_loss(losses)})

    def _step_plain(self, batch: Batch, shares: list[slice], seed: tuple[int, ...]) -> dict[str, Tensor]:
        """One pass a micro-batch; where there are several, losses are means over clips."""
        parts: list[dict[str, Tensor]] = []
        for index, rows in enumerate(shares):
            outputs, scale = self._forward(batch[rows], (*seed, index))
            share = (rows.stop - rows.start) / len(batch)
            losses = {name: share * loss for name, loss in self.objective.losses(outputs, scale).items()}
            self._backward(total_loss(losses) * dist.get_world_size())
            parts.append({name: loss.detach() for name, loss in losses.items()})
        return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}

    def _step_cached(self, batch: Batch, shares: list[slice], seed: tuple[int, ...]) -> dict[str, Tensor]:
        with torch.no_grad():
            passes = [self._forward(batch[rows], (*seed, index)) for index, rows in enumerate(shares)]
        cached = _as_leaves(_concatenate([outputs for outputs, _ in passes]))
        scale = passes[0][1].detach().requires_grad_()
        losses = self.objective.losses(cached, scale)
        (total_loss(losses) * dist.get_world_size()).backward()
        assert scale.grad is not None
        for index, rows in enumerate(shares):
            again, scale_again = self._forward(batch[rows], (*seed, index))
            surrogate = _inner_product(again, cached, rows)
            if index == 0 and scale_again.requires_grad:
                surrogate = surrogate + (scale_again * scale.grad).sum()
            self._backward(surrogate)
        return losses

    def _passes(
        self, micro_batches: int, rounds: int, stop: Callable[[], bool], report: Callable[[str, float], None]
    ) -> Callable[[], None]:
        """What is called before each pass of a step, of which there are `rounds` over the micro-batches."""
        done = 0

        def enter() -> None:
            nonlocal done
            if done and self.any_rank(stop()):
                raise StepAbandonedError(f"left before pass {done + 1} of {rounds * micro_batches}")
            before, index = divmod(done, micro_batches)
            of_rounds = f", pass {before + 1} of {rounds}" if rounds > 1 else ""
            report(f"micro-batch {index + 1} of {micro_batches}{of_rounds}", done / (rounds * micro_batches))
            done += 1

        return enter

    def _forward(self, batch: Batch, seed: tuple[int, ...]) -> tuple[dict[str, Tensor], Tensor]:
        """The objective's outputs for a micro-batch and the logit scale; the same `seed` draws the same at random."""
        self._enter_pass()
        torch.manual_seed(hash(seed) & 0x7FFF_FFFF_FFFF_FFFF)
        outputs, scale = self._engine(batch)
        return outputs, scale

    def _backward(self, loss: Tensor) -> None:
        """Add the gradients of `loss`; DeepSpeed steps when it has seen all micro-batches."""
        self._engine.backward(loss, scale_wrt_gas=False)
        self._engine.step()

    def is_finite(self) -> bool:
        """Whether all weights are finite, on every rank; every rank has to ask."""
        # of ZeRO 3, this rank's parts
        parts = (getattr(weight, "ds_tensor", weight) for weight in self._engine.module.parameters())
        return not self.any_rank(not all(bool(part.isfinite().all()) for part in parts))

    def any_rank(self, flag: bool) -> bool:
        """Whether `flag` is true on any rank, the same answer for all; every rank has to ask."""
        return self.any_rank_each([flag])[0]

    def any_rank_each(self, flags: Sequence[bool]) -> list[bool]:
        """Of each flag, whether it is true on any rank, in one exchange; every rank has to ask."""
        counts = torch.tensor(flags, dtype=torch.float32)
        dist.all_reduce(counts, group=self._host_ranks)
        return [bool(count) for count in counts]

    def save(self, step: int, keep: int) -> None:
        """Write the checkpoint of `step`, which is visible only when whole, and drop all but the last `keep`."""
        if dist.get_rank() == 0:
            begin_checkpoint(self._checkpoints, step)
        dist.barrier()
        self._engine.save_checkpoint(str(self._checkpoints), tag=checkpoint_name(step), save_latest=False)
        if isinstance(self._adamw, AdamWOnDisk):
            self._adamw.put_away()
        sync_directory(self._checkpoints / checkpoint_name(step))  # what other nodes wrote only they can sync
        dist.barrier()
        if dist.get_rank() == 0:
            metadata = CheckpointMetadata(step, dist.get_world_size(), self.zero_stage, self.plan.micro_batch_size)
            finish_checkpoint(self._checkpoints, metadata, keep)
        dist.barrier()  # a rank that left now would have a launcher of several nodes end the others

    def resume(self) -> int:
        """Load the newest whole checkpoint; the number of steps that it has behind it, 0 where there is none.

        It may have been written on another number of ranks.

        Raises:
            ValueError: DeepSpeed can't load it.
            RuntimeError: it can't be converted for this number of ranks.
        """
        if self._found is None:
            return 0
        name = checkpoint_name(self._found.step)
        universal = self._checkpoints / "universal"
        if self._converts:
            if dist.get_rank() == 0:
                make_universal(self._checkpoints / name, universal)
            dist.barrier()
            name = universal.name
        # without a copy of the file in memory
        with load_settings.patch({"load.mmap": self.plan.moments_on_disk}):  # type: ignore[attr-defined]
            path, _ = self._engine.load_checkpoint(str(self._checkpoints), tag=name)
        if path is None:
            raise ValueError(f"{self._checkpoints / name} can't be loaded; remove it to start the training over")
        self._set_optimizer_right()
        dist.barrier()
        if dist.get_rank() == 0:
            shutil.rmtree(universal, ignore_errors=True)
        return self._found.step

    def _set_optimizer_right(self) -> None:
        """Undo what DeepSpeed 0.19 does on loading the universal form into ZeRO 3.

        Every group gets the settings of the first, and all parameters count their steps in one tensor, together.
        """
        for group, settings in zip(self._adamw.param_groups, self._group_settings, strict=True):
            group.update(settings)
        for state in self._adamw.state.values():
            state["step"] = state["step"].clone()

    def collect_weights(self) -> dict[str, Tensor] | None:
        """The model's float32 weights on rank 0, None on the others; ZeRO's parts pass through the disk."""
        if self.zero_stage == 0:
            return self.model.state_dict() if dist.get_rank() == 0 else None
        final = self._checkpoints / "final"
        self._engine.save_checkpoint(str(final), tag="final")
        dist.barrier()
        if dist.get_rank() != 0:
            return None
        weights = get_fp32_state_dict_from_zero_checkpoint(str(final), tag="final")
        shutil.rmtree(final)
        # ZeRO 1 keeps float32 weights of what is trained only
        whole = {name: weights.get(f"model.{name}", kept) for name, kept in self.model.state_dict().items()}
        return {name: value.float() if value.is_floating_point() else value for name, value in whole.items()}


def checkpoint_to_resume(checkpoints: Path) -> CheckpointMetadata | None:
    """The newest whole checkpoint in a directory: one rank reads the files, so that all resume from the same."""
    found = [newest_checkpoint(checkpoints) if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(found)
    return found[0]


class _CompiledForward:
    """A tower's forward pass, compiled at its first call and for each new kind of shape; without a compiler, eager."""

    def __init__(self, tower: nn.Module) -> None:
        self._eager: Callable[..., Tensor] = tower.forward
        # random numbers as eager draws them: the passes with and without a graph are compiled apart, but must agree
        self._compiled = torch.compile(tower.forward, options={"fallback_random": True})
        self.runs_compiled = True

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.runs_compiled:
            try:
                return self._compiled(*args, **kwargs)
            except Exception as error:
                # a compiler fails in many ways, all with the same cure; what isn't its fault fails again, eagerly
                reason = f"{type(error).__name__}: {error}".splitlines()[0]
                log.warning("a tower can't be compiled and runs eagerly: %s", reason)
                self.runs_compiled = False
        return self._eager(*args, **kwargs)


def _compile_towers(model: Clip4Vla, zero_stage: int) -> list[_CompiledForward]:
    """Compile the forward pass of each tower in its place; names of weights stay as they are."""
    if zero_stage == 3:
        log.warning("trainer.compile is left out: ZeRO 3 fetches weights in the middle of a tower")
        return []
    towers = [model.clip.visual, model.clip.transformer, model.audio]
    towers += [model.fusion.transformer] if model.fusion is not None else []
    compiled = [_CompiledForward(tower) for tower in towers]
    for tower, forward in zip(towers, compiled, strict=True):
        tower.forward = forward
    return compiled


def _shares(clips: int, pieces: int) -> list[slice]:
    """`clips` rows cut into `pieces` whose sizes differ by one at most, the larger ones first."""
    if clips < pieces:
        raise ValueError(f"{clips} clips can't be cut into {pieces} micro-batches")
    size, odd = divmod(clips, pieces)
    bounds = [index * size + min(index, odd) for index in range(pieces + 1)]
    return [slice(low, high) for low, high in pairwise(bounds)]


def _concatenate(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The outputs of several micro-batches as those of one batch."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _as_leaves(outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same outputs, each of real numbers a leaf that collects its gradient."""
    return {name: value.requires_grad_() if value.is_floating_point() else value for name, value in outputs.items()}


def _inner_product(again: Mapping[str, Tensor], cached: Mapping[str, Tensor], rows: slice) -> Tensor:
    """A scalar whose gradient in the weights is that which `cached` collected for its `rows`."""
    gradients = {name: value.grad for name, value in cached.items()}
    terms = [(again[name] * gradient[rows]).sum() for name, gradient in gradients.items() if gradient is not None]
    return torch.stack(terms).sum()


def _over_ranks(losses: Mapping[str, Tensor]) -> dict[str, float]:
    """The ranks' shares summed, in one exchange."""
    values = torch.stack([value.detach().float().reshape(()) for value in losses.values()])
    dist.all_reduce(values)
    return dict(zip(losses, values.tolist(), strict=True))
