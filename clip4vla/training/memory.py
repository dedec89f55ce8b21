"""How much memory a step of training takes, from its settings alone, and how a step is made to fit.

In: the settings of a training and a budget. Out: bytes of a rank, and a `MemoryPlan`: how many clips pass at once, how
much is recomputed, where Adam's moments lie. A forward and a backward pass run through a copy of the model that has
shapes and no numbers, and what is alive at once is added up: exact for any architecture, the same on every machine, a
matter of seconds. For what an allocator holds beyond that, and for workspaces of single operations, there is a margin.
"""

import weakref
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clip4vla.audio.frontend import max_samples
from clip4vla.clips.batch import Batch
from clip4vla.config import (
    AudioConfig,
    AudioToken,
    CaptioningConfig,
    ModelConfig,
    PretrainingConfig,
    RetrievalConfig,
    TrainerConfig,
    TrainingConfig,
)
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.training.flops import StepFlops, without_numbers
from clip4vla.training.objectives import Objective, build_objective
from clip4vla.utils.machine import available_memory
from clip4vla.utils.numbers import format_size

CAPTION_TOKENS = 10_000
"""Assumed size of the vocabulary of captions: it is known when the captions have been read."""
PROCESS_BYTES = 1_000_000_000
"""Of a rank before it has a model: the libraries."""
MARGIN = 1.25
"""Of activations."""
SHARE_OF_FREE = 0.9
"""Of the memory that is free, what `trainer.memory_gb: auto` takes."""
ZERO_BUCKET_BYTES = 1_000_000_000
"""In which DeepSpeed gathers gradients with ZeRO 1 and 2."""
CHANNELS = 2
"""Of the sound: more than one takes the front end's memory."""
LEAST_AT_ONCE = 8
"""Clips in a micro-batch below which recomputing blocks costs less than the smaller micro-batch would."""


@dataclass(frozen=True)
class StateBytes:
    """What a rank holds of its model all the time."""

    weights: int
    gradients: int
    moments: int
    """AdamW's two and, with ZeRO, the float32 weights that it steps on."""
    largest_moments: int
    """The two of the largest weight: what is in memory at once of moments on disk."""
    exchanged: int
    """Copies of gradients, after the backward pass, while several ranks without ZeRO add them up."""
    clip: int
    """Of one clip of a batch, before it passes."""

    @classmethod
    def of(cls, model: Clip4Vla, clip: Batch, trainer: TrainerConfig, on_gpu: bool, world_size: int) -> "StateBytes":
        """Of one of `world_size` ranks that train `model`, which may be one without numbers."""
        sizes = [weight.numel() for weight in model.parameters() if weight.requires_grad]
        number, trained = sum(weight.numel() for weight in model.parameters()), sum(sizes)
        width, stage = 2 if trainer.has_half_weights(on_gpu) else 4, trainer.zero_stage
        gradients = width * trained // (world_size if stage >= 2 else 1)
        copies = 2 * number if trainer.is_half(on_gpu) and width == 4 else 0
        return cls(
            weights=width * number // (world_size if stage == 3 else 1) + copies,
            gradients=gradients + (ZERO_BUCKET_BYTES if stage in (1, 2) else 0),
            moments=8 * trained if stage == 0 else 12 * trained // world_size,
            largest_moments=8 * max(sizes),
            exchanged=gradients if stage == 0 and world_size > 1 else 0,
            clip=sum(value.nbytes for value in vars(clip).values() if isinstance(value, Tensor)),
        )


class StepMemory:
    """Bytes of a rank in a step.

    Args:
        state: what it holds all the time.
        blocks: of the model, see `Clip4Vla.recompute`.
        peak: the most bytes of activations at once of so many clips in a micro-batch with so many blocks recomputed;
            called once for each pair.
    """

    def __init__(self, state: StateBytes, blocks: int, peak: Callable[[int, int], int]) -> None:
        self.state = state
        self.blocks = blocks
        self._peak = cache(peak)

    def bytes(self, clips: int, share: int, recomputed: int = 0, moments_on_disk: bool = False) -> int:
        """Bytes of a rank.

        Args:
            clips: in a micro-batch.
            share: of the batch that the rank has; the next batch is prepared meanwhile.
            recomputed: blocks that are.
            moments_on_disk: whether AdamW's moments are.
        """
        state = self.state
        moments, largest = (0, state.largest_moments) if moments_on_disk else (state.moments, 0)
        resident = PROCESS_BYTES + state.weights + state.gradients + moments + 2 * share * state.clip
        # one after the other: the passes, the exchange, AdamW's step
        return resident + max(round(MARGIN * self._peak(clips, recomputed)), state.exchanged, largest)

    def fewest_recomputed(self, clips: int, share: int, budget: int, moments_on_disk: bool = False) -> int | None:
        """The least number of blocks to recompute so that a step fits; None where it doesn't."""
        fitting = self._fits(clips, share, budget, moments_on_disk)
        if fitting(0):
            return 0
        if not fitting(self.blocks):
            return None
        return bisect_left(range(self.blocks + 1), True, key=fitting)

    def _fits(self, clips: int, share: int, budget: int, moments_on_disk: bool) -> Callable[[int], bool]:
        return lambda recomputed: self.bytes(clips, share, recomputed, moments_on_disk) <= budget


@dataclass(frozen=True)
class MemoryPlan:
    """How a step is made to fit."""

    micro_batch_size: int
    recomputed_blocks: int = 0
    moments_on_disk: bool = False

    @property
    def is_tight(self) -> bool:
        """Whether time is given for memory."""
        return self.recomputed_blocks > 0 or self.moments_on_disk


@dataclass(frozen=True)
class Wanted:
    """What is to fit: a rank's share of a step."""

    share: int
    """Clips of a step on a rank."""
    micro_batch_size: int | Literal["auto"]
    comparing: bool
    """Whether clips of all micro-batches are compared, so that several need one more forward pass."""
    disk: bool
    """Whether moments may lie on disk: on a CPU in float32 without ZeRO, where all of them are one rank's own."""


def plan_step(memory: StepMemory, wanted: Wanted, budget: int, setting: str = "micro_batch_size") -> MemoryPlan:
    """The plan of those that fit in `budget` bytes that takes least time.

    With a given micro-batch as few blocks as possible are recomputed, and the moments lie on disk where recomputing all
    is not enough. `auto` takes the first that fits of: the share in one pass, where that saves the second forward pass
    of cached gradients; the largest equal part of it of LEAST_AT_ONCE clips or more, nothing recomputed; the largest
    part that fits in any way.

    Args:
        memory: of a step.
        wanted: what is to fit.
        budget: bytes of a rank, the same on all ranks.
        setting: name of the setting of the micro-batch, for the message.

    Raises:
        ValueError: nothing fits; the message says what would.
    """
    sizes = _halves(wanted.share)
    if wanted.micro_batch_size == "auto":
        size = _automatic(memory, wanted, budget, sizes)
    else:
        size = min(wanted.micro_batch_size, wanted.share)
    for on_disk in (False, True) if wanted.disk else (False,):
        if size is not None and (blocks := memory.fewest_recomputed(size, wanted.share, budget, on_disk)) is not None:
            return MemoryPlan(size, blocks, on_disk)
    smaller = None if wanted.micro_batch_size == "auto" else _largest(memory, wanted, budget, sizes)
    tried = size or 1
    least = memory.bytes(tried, wanted.share, memory.blocks, wanted.disk)
    advice = f"{setting}: {smaller} fits, and auto finds it" if smaller else "a smaller model.architecture takes less"
    raise ValueError(
        f"a micro-batch of {tried} takes at least {format_size(least)} of a rank, which has {format_size(budget)}: "
        f"{advice}, and trainer.memory_gb sets what a rank has"
    )


def _automatic(memory: StepMemory, wanted: Wanted, budget: int, sizes: list[int]) -> int | None:
    """The micro-batch of `auto`, None where none fits; see `plan_step`."""
    share = wanted.share
    if wanted.comparing and memory.fewest_recomputed(share, share, budget) is not None:
        return share
    large = [size for size in sizes if size >= min(LEAST_AT_ONCE, share)]
    return _first(large, lambda size: memory.bytes(size, share) <= budget) or _largest(memory, wanted, budget, sizes)


def _largest(memory: StepMemory, wanted: Wanted, budget: int, sizes: list[int]) -> int | None:
    """The largest of `sizes` that fits in any way."""
    return _first(sizes, lambda size: memory.bytes(size, wanted.share, memory.blocks, wanted.disk) <= budget)


def _first(sizes: list[int], fits: Callable[[int], bool]) -> int | None:
    """The first of sizes that descend that fits, where all smaller ones do, too."""
    index = bisect_left(sizes, True, key=fits)
    return sizes[index] if index < len(sizes) else None


def _halves(share: int) -> list[int]:
    """The share of a rank, half of it and so on to 1, rounded up: sizes of nearly equal micro-batches."""
    return list(dict.fromkeys(-(-share // parts) for parts in (2**power for power in range(share.bit_length() + 1))))


def describe(plan: MemoryPlan, memory: StepMemory, share: int, budget: int) -> str:
    """A plan for a person, in one line."""
    size = memory.bytes(plan.micro_batch_size, share, plan.recomputed_blocks, plan.moments_on_disk)
    return (
        f"memory: about {format_size(size)} of the {format_size(budget)} of a rank, micro-batches of "
        f"{plan.micro_batch_size}, {plan.recomputed_blocks} of {memory.blocks} blocks recomputed, "
        f"Adam's moments {'on disk' if plan.moments_on_disk else 'in memory'}"
    )


def free_of_rank(on_gpu: bool, ranks: int) -> int:
    """Bytes that each of `ranks` ranks on this machine may still get: of its GPU, or of the machine."""
    free = torch.cuda.mem_get_info()[0] if on_gpu else available_memory() // ranks
    return int(SHARE_OF_FREE * free)


@dataclass(frozen=True)
class TrainingCost:
    """What a training takes of a rank's device."""

    memory: StepMemory
    clip_flops: int
    """Useful FLOPs of a clip's forward and backward pass."""
    comparing: bool
    """See `Wanted`."""

    @property
    def checkpoint_bytes(self) -> int:
        """Bytes that a rank writes into a checkpoint: weights and moments, without gradients."""
        return self.memory.state.weights + self.memory.state.moments


def cost_of(
    training: PretrainingConfig | RetrievalConfig | CaptioningConfig,
    model: ModelConfig,
    audio: AudioConfig,
    audio_token: AudioToken,
    trainer: TrainerConfig,
    on_gpu: bool,
    world_size: int,
) -> TrainingCost:
    """What `training` takes, before there is data or a model.

    Raises:
        ValueError: the architecture can't be used.
    """
    sized = without_numbers(lambda: _build(training, model, audio))
    objective = build_objective(training, audio_token)
    clip = _clips(training, sized, 1)
    flops = StepFlops(sized, objective)(clip)
    if sized.decoder is not None:
        sized.freeze_text()
    state = StateBytes.of(sized, clip, trainer, on_gpu, world_size)
    return TrainingCost(_measured(sized, training, objective, trainer, on_gpu, state), flops, objective.needs_all_clips)


def plan_of(
    cost: TrainingCost, training: TrainingConfig, trainer: TrainerConfig, on_gpu: bool, ranks: int, setting: str
) -> tuple[MemoryPlan, str]:
    """How `ranks` ranks on this machine will make a training fit, and a line that says so.

    Raises:
        ValueError: nothing fits, see `plan_step`.
    """
    share = -(-training.batch_size // ranks)
    wanted = Wanted(
        share, training.micro_batch_size, cost.comparing, trainer.moments_can_lie_on_disk(on_gpu, training.optimizer)
    )
    budget = free_of_rank(on_gpu, ranks) if trainer.memory_gb == "auto" else round(trainer.memory_gb * 1e9)
    plan = plan_step(cost.memory, wanted, budget, setting)
    return plan, describe(plan, cost.memory, share, budget)


def step_memory(
    model: Clip4Vla,
    training: PretrainingConfig | RetrievalConfig | CaptioningConfig,
    objective: Objective,
    trainer: TrainerConfig,
    on_gpu: bool,
    world_size: int,
) -> StepMemory:
    """What a step of training `model` takes of a rank, with the tokens that it keeps."""
    sized = without_numbers(model.with_initial_weights)
    for copy, own in zip(sized.parameters(), model.parameters(), strict=True):
        copy.requires_grad_(own.requires_grad)
    state = StateBytes.of(model, _clips(training, sized, 1), trainer, on_gpu, world_size)
    return _measured(sized, training, objective, trainer, on_gpu, state)


def _measured(
    sized: Clip4Vla,
    training: TrainingConfig,
    objective: Objective,
    trainer: TrainerConfig,
    on_gpu: bool,
    state: StateBytes,
) -> StepMemory:
    if trainer.has_half_weights(on_gpu) or (on_gpu and trainer.is_half(on_gpu)):
        sized.bfloat16()  # a GPU keeps the sums of residual paths in float32: an eighth more, which the margin covers
    for weight in sized.parameters():
        if weight.requires_grad:  # gradients of weights are counted as state
            weight.register_post_accumulate_grad_hook(_forget_gradient)

    def peak(clips: int, recomputed: int) -> int:
        sized.recompute(recomputed)
        batch = _clips(training, sized, clips)
        with _Alive(sized) as alive:
            outputs = objective.outputs(sized, batch)
            torch.stack([part.sum() for part in outputs.values() if part.requires_grad]).sum().backward()
        return alive.peak

    return StepMemory(state, sized.blocks, peak)


def _forget_gradient(weight: Tensor) -> None:
    weight.grad = None


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, the most at once in `peak`; not those of a model's weights."""

    def __init__(self, model: Clip4Vla) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._own = {weight.untyped_storage()._cdata for weight in (*model.parameters(), *model.buffers())}
        self._alive: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._own or key in self._alive:
            return

        def free(_: object) -> None:
            self._now -= size
            del self._alive[key]

        self._alive[key] = weakref.ref(storage, free)
        self._now += size
        self.peak = max(self.peak, self._now)


def _build(training: TrainingConfig, model: ModelConfig, audio: AudioConfig) -> Clip4Vla:
    from_scratch = model.model_copy(update={"weights": None})
    vocabulary = torch.arange(CAPTION_TOKENS) if isinstance(training, CaptioningConfig) else None
    has_cross_encoder = isinstance(training, RetrievalConfig) and training.cross_encoder > 0
    return Clip4Vla(from_scratch, audio, vocabulary=vocabulary, has_cross_encoder=has_cross_encoder)


def _clips(training: TrainingConfig, model: Clip4Vla, number: int) -> Batch:
    """Clips with all that the training reads of them, and no numbers."""
    shared = training.shared_captions_per_clip if isinstance(training, RetrievalConfig) else 0
    captions, size = training.captions_per_clip + shared, model.image_size
    with torch.device("meta"):
        ids = torch.zeros(number, captions, dtype=torch.int64)
        return Batch(
            clip_ids=("",) * number,
            frames=torch.zeros(number, training.frames, 3, size, size, dtype=torch.uint8),
            video_mask=torch.ones(number, training.frames, dtype=torch.bool),
            waveform=torch.zeros(number, CHANNELS, max_samples(model.audio_config, size)),
            samples=torch.ones(number, dtype=torch.int64),
            tokens=torch.zeros(number, captions, min(training.max_tokens, model.context_length), dtype=torch.int64),
            audio_types=torch.zeros(number, dtype=torch.int64),
            text_ids=ids,
            clip_text_ids=ids,
            shared=torch.zeros(number, captions, dtype=torch.bool) if shared else None,
        )
