"""One training, step by step: a `TrainSpec` in, a model directory out."""

import math
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import distributed as dist

from clip4vla.clips.batch import Batch
from clip4vla.clips.dataset import ClipDataset, find_once
from clip4vla.clips.loader import TrainingBatches, begin_worker, training_loader
from clip4vla.clips.sampler import StepSampler
from clip4vla.clips.transform import ClipTransform
from clip4vla.config import CaptioningConfig, ContrastiveConfig, RetrievalConfig, TrainerConfig
from clip4vla.model.caption_decoder import CaptionDecoder
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.fusion import SequenceFusion
from clip4vla.model.pretrained import load_model, save_model
from clip4vla.model.tokenizer import Tokenizer
from clip4vla.model.towers import check_state
from clip4vla.records import RUN_FILE
from clip4vla.tracking.run import Run, start_run
from clip4vla.training.checkpoints import CheckpointMetadata
from clip4vla.training.engine import Engine, StepAbandonedError, after_rank_0, checkpoint_to_resume, join_ranks
from clip4vla.training.flops import StepFlops, peak_flops
from clip4vla.training.memory import MemoryPlan, Wanted, describe, free_of_rank, plan_step, step_memory
from clip4vla.training.objectives import Objective, build_objective
from clip4vla.training.optimizer import learning_rate
from clip4vla.training.spec import PROGRESS_FILE, TrainSpec
from clip4vla.training.throughput import StepProgress, ThroughputMeter, line
from clip4vla.training.worker import STOPPED
from clip4vla.utils.files import atomic_directory, write_json
from clip4vla.utils.machine import own_memory

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
WORKERS_BESIDE_GPU = 8
CLIPS_READ_FOR_TOKENS = 100_000
"""Of so many clips, a matter of seconds, all sentences are read first, and tokens that none has are left out of the
training. A larger corpus has most tokens."""
FOUND = "captions"
"""Beside the checkpoints: what a training must know of all captions, read once by rank 0 (`ClipDataset.found`)."""
PADDING = 0
"""The token after the end of a text."""
DIVERGED = "The training stops there and keeps its last good checkpoint; a lower optimizer.lr may help"


def train(spec: TrainSpec) -> None:
    """Train by `spec`, from its last checkpoint if there is one, and write the model directory.

    Raises:
        ValueError: the spec doesn't fit the data or this machine.
        SystemExit: the training was asked to stop by SIGTERM or SIGINT; a checkpoint of the steps that were done is
            there, the step under way is left.
    """
    rank, world_size, device = join_ranks()
    torch.manual_seed(spec.seed)
    checkpoints = spec.checkpoints / spec.fingerprint()
    dataset = ClipDataset([corpus.clips for corpus in spec.corpora], _min_words(spec), checkpoints / FOUND)
    # rank 0 reads all captions for the others; a captioning model has the vocabulary of theirs
    with after_rank_0(rank) if spec.task == "captioning" else nullcontext():
        model = build_model(spec, dataset.found)
    sampler = build_sampler(spec, dataset, world_size)
    with after_rank_0(rank):
        if spec.task != "captioning" and len(dataset) <= CLIPS_READ_FOR_TOKENS:
            model.keep_tokens(_tokens_of(dataset, model.tokenizer(spec.training.max_tokens)))
        if _shared_captions(spec):
            dataset.shared_captions()
    objective = build_objective(spec.training, spec.audio_token)
    found = checkpoint_to_resume(checkpoints)
    share = sampler.clips_per_step // world_size
    plan, memory_line = choose_plan(spec, model, objective, share, found, device)
    micro_batches = -(-share // plan.micro_batch_size)
    engine = Engine(
        model, objective, spec.training.optimizer, spec.trainer, micro_batches, plan, device, checkpoints, found
    )
    if rank == 0:
        print(memory_line, flush=True)
    step = engine.resume()
    batches = TrainingBatches(dataset, clip_transform(spec, model), sampler, rank, world_size)
    with start_run(spec.root, spec.task, spec.task, run_id=spec.run_id, system_metrics=True, enabled=rank == 0) as run:
        run.set_tags({"micro_batch_size": str(plan.micro_batch_size), "memory": memory_line})
        figures = _run_steps(spec, engine, batches, step, run)
        weights = engine.collect_weights()
        if weights is not None:
            write_result(spec, engine.model, weights, figures, world_size, run.provenance)
            shutil.rmtree(spec.checkpoints, ignore_errors=True)


def build_model(spec: TrainSpec, found: Path | None = None) -> Clip4Vla:
    """The model to start from: as it is initialised, or with the weights of a run result.

    `found` is a directory where the tokens of all captions are kept (`ClipDataset`).

    A fusion or a caption decoder that the run result doesn't have starts from its text tower, as `SequenceFusion` and
    `CaptionDecoder` do; experts start as the mean fusion; a cross-attending score starts at zero.
    Captioning freezes the text tower.

    Raises:
        ValueError: the run result's fusion is of another depth than the spec's, its experts are of other tokens, or
            its decoder's vocabulary isn't of the size of the spec's.
    """
    if spec.start_from is None:
        vocabulary = _vocabulary(spec, found)
        model = Clip4Vla(spec.model, spec.audio, vocabulary=vocabulary, has_cross_encoder=_trains_cross_encoder(spec))
    else:
        model = _continued(spec, load_model(spec.start_from), found)
    if model.decoder is not None:
        model.freeze_text()
    return model.train()


def _continued(spec: TrainSpec, before: Clip4Vla, found: Path | None) -> Clip4Vla:
    """The spec's model with the weights of `before`."""
    vocabulary = _vocabulary(spec, found)
    model = Clip4Vla(spec.model, spec.audio, before.architecture, vocabulary, _trains_cross_encoder(spec))
    model.clip.load_state_dict(before.clip.state_dict())
    model.audio.load_state_dict(before.audio.state_dict())
    if model.fusion is not None:
        fusion = (before.fusion or SequenceFusion(before.clip, spec.model.fusion_layers)).state_dict()
        check_state(model.fusion.state_dict(), fusion, f"the fusion of {spec.start_from}")
        model.fusion.load_state_dict(fusion)
    if model.experts is not None and before.experts is not None:
        if spec.model.audio_experts != before.config.audio_experts:
            raise ValueError(
                f"model.audio_experts is {spec.model.audio_experts}, but {spec.start_from} has "
                f"{before.config.audio_experts}"
            )
        model.experts.load_state_dict(before.experts.state_dict())
    if vocabulary is not None and model.decoder is not None:
        decoder = (before.decoder or CaptionDecoder(before.clip, vocabulary)).state_dict()
        check_state(model.decoder.state_dict(), decoder, f"the caption decoder of {spec.start_from}")
        model.decoder.load_state_dict(decoder)
    if model.cross_encoder is not None and before.cross_encoder is not None:
        model.cross_encoder.load_state_dict(before.cross_encoder.state_dict())
    return model


def choose_plan(
    spec: TrainSpec,
    model: Clip4Vla,
    objective: Objective,
    share: int,
    found: CheckpointMetadata | None,
    device: torch.device,
) -> tuple[MemoryPlan, str]:
    """How steps of `share` clips a rank are made to fit, the same on every rank, and a line that says so.

    A micro-batch that was found is taken again with its checkpoint, so that the resumed training is the same to the
    last bit.

    Raises:
        ValueError: nothing fits, see `plan_step`.
    """
    on_gpu, size = device.type == "cuda", spec.training.micro_batch_size
    memory = step_memory(model, spec.training, objective, spec.trainer, on_gpu, dist.get_world_size())
    if size == "auto" and found is not None:
        size = found.micro_batch_size
    wanted = Wanted(
        share, size, objective.needs_all_clips, spec.trainer.moments_can_lie_on_disk(on_gpu, spec.training.optimizer)
    )
    budget = _budget(spec.trainer, device)
    plan = plan_step(memory, wanted, budget, f"{spec.task}.micro_batch_size")
    return plan, describe(plan, memory, share, budget)


def _budget(trainer: TrainerConfig, device: torch.device) -> int:
    """Bytes that each rank may take: the least that any has."""
    if trainer.memory_gb != "auto":
        return round(trainer.memory_gb * 1e9)
    on_gpu = device.type == "cuda"
    dist.barrier()  # every rank has its model by now, so that none takes what another counts as free
    free = free_of_rank(on_gpu, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) + (0 if on_gpu else own_memory())
    least = torch.tensor([free], device=device)
    dist.all_reduce(least, dist.ReduceOp.MIN)
    return int(least)


def _tokens_of(dataset: ClipDataset, tokenizer: Tokenizer) -> torch.Tensor:
    """(U,) int64 the tokens of all texts, padding included."""
    tokens = _caption_tokens(dataset, tokenizer, dataset.found)
    return torch.cat([tokens, torch.tensor([PADDING])]).unique()


def _caption_tokens(dataset: ClipDataset, tokenizer: Tokenizer, found: Path | None) -> torch.Tensor:
    """(V,) int64 see `Tokenizer.vocabulary`."""
    tokens = find_once(found, "tokens", lambda: tokenizer.vocabulary(dataset.sentences()).numpy())
    return torch.from_numpy(tokens.copy())


def _min_words(spec: TrainSpec) -> int:
    """Words of the shortest captions that the training reads."""
    return spec.training.min_words if isinstance(spec.training, CaptioningConfig) else 0


def _shared_captions(spec: TrainSpec) -> int:
    """Captions of a clip in a batch that other clips have, too."""
    return spec.training.shared_captions_per_clip if isinstance(spec.training, RetrievalConfig) else 0


def _trains_cross_encoder(spec: TrainSpec) -> bool:
    """Whether the training has a cross encoder."""
    return isinstance(spec.training, RetrievalConfig) and spec.training.cross_encoder > 0


def _vocabulary(spec: TrainSpec, found: Path | None) -> torch.Tensor | None:
    """The tokens that the spec's captions may have, None where it isn't about captions."""
    if not isinstance(spec.training, CaptioningConfig):
        return None
    tokenizer = Tokenizer(spec.training.max_tokens)
    if spec.training.vocabulary == "full":
        return tokenizer.full_vocabulary()
    return _caption_tokens(ClipDataset([corpus.clips for corpus in spec.corpora]), tokenizer, found)


def build_sampler(spec: TrainSpec, dataset: ClipDataset, world_size: int) -> StepSampler:
    """The order of the spec's clips; every rank takes an equal share of each batch.

    Raises:
        ValueError: the batch has no equal shares, or there are fewer clips than ranks.
    """
    weights = tuple(corpus.weight for corpus in spec.corpora) if len(spec.corpora) > 1 else None
    wanted = spec.training.batch_size
    if wanted % world_size:
        raise ValueError(f"{spec.task}.batch_size is {wanted}, which {world_size} ranks can't share equally")
    batch_size = min(wanted, len(dataset)) // world_size * world_size
    if batch_size == 0:
        raise ValueError(f"{len(dataset)} clips can't be shared among {world_size} ranks")
    return StepSampler(dataset.sizes, weights, batch_size, spec.training.epochs, spec.seed)


def clip_transform(spec: TrainSpec, model: Clip4Vla) -> ClipTransform:
    """How clips become batches of this training."""
    training = spec.training
    return model.clip_transform(
        training.frames,
        training.max_tokens,
        training.captions_per_clip,
        training.circular_shift,
        _min_words(spec),
        _shared_captions(spec),
        isinstance(training, ContrastiveConfig) and training.identical_captions_match,
        training.augmentation,
    )


def _run_steps(spec: TrainSpec, engine: Engine, batches: TrainingBatches, start: int, run: Run) -> dict[str, float]:
    """The steps from `start` on; final losses, and the figures of the throughput over all of them.

    Raises:
        ValueError: a loss, or a weight that was to be saved, isn't finite.
        SystemExit: the training was asked to stop; the step under way is left, and a checkpoint is there.
    """
    steps = batches.sampler.steps
    loaded = _start_loader(batches, start, loader_workers(spec.trainer))
    stop = _stop_when_asked()
    flops = StepFlops(engine.model, engine.objective)
    throughput = ThroughputMeter(
        batches.sampler.clips_per_step, peak_flops(engine.device, engine.precision, spec.trainer.peak_tflops)
    )
    progress = StepProgress(steps, batches.sampler.clips_per_step, shows=batches.rank == 0)
    checkpoints = _Checkpoints(spec.trainer, engine, run, start, progress)
    losses: dict[str, float] = {}
    waiting_since = time.monotonic()
    progress.begin(start)
    with progress.watched():
        for step, batch in enumerate(loaded, start):
            waited = time.monotonic() - waiting_since
            lr = learning_rate(step, steps, spec.training.optimizer)
            try:
                losses = engine.step(batch, lr, (spec.seed, step, batches.rank), stop, progress.at)
            except StepAbandonedError:
                checkpoints.save(step)
                raise SystemExit(STOPPED) from None
            check_finite(step, losses)
            throughput.step(waited, flops(batch))
            done = step + 1
            if done % spec.trainer.log_every == 0 or done == steps:
                _report(done, losses, lr, throughput, progress, run)
                if batches.rank == 0:
                    write_json(spec.checkpoints / PROGRESS_FILE, {"step": done, "steps": steps})
            # signals reach the ranks at different moments, and clocks differ, but all must save the same step
            stopping, is_due = engine.any_rank_each([stop(), batches.rank == 0 and checkpoints.is_due(done)])
            if done < steps and (stopping or is_due):
                checkpoints.save(done)
                if stopping:
                    raise SystemExit(STOPPED)
            waiting_since = time.monotonic()
            progress.begin(min(done, steps - 1))
    return losses | throughput.read_whole()


class _Checkpoints:
    """When a checkpoint is due, and that none is saved that is there already or isn't finite."""

    def __init__(self, trainer: TrainerConfig, engine: Engine, run: Run, start: int, progress: StepProgress) -> None:
        self._trainer, self._engine, self._run, self._progress = trainer, engine, run, progress
        self._last, self._last_at = start, time.monotonic()

    def is_due(self, done: int) -> bool:
        """Whether there were enough steps, or minutes, since the last one."""
        minutes = (time.monotonic() - self._last_at) / 60
        return done % self._trainer.checkpoint_every == 0 or minutes >= self._trainer.checkpoint_minutes

    def save(self, done: int) -> None:
        """Write the checkpoint of the step `done`, unless that is where the training began or the last one was.

        Raises:
            ValueError: a weight isn't finite.
        """
        if done == self._last:
            return
        self._progress.at("writing a checkpoint", 0.0)
        if not self._engine.is_finite():
            raise ValueError(f"step {done}: the weights are no longer finite. {DIVERGED}")
        self._run.flush()  # a step that is never done again is on record
        self._engine.save(done, self._trainer.keep_checkpoints)
        self._last, self._last_at = done, time.monotonic()


def check_finite(step: int, values: Mapping[str, float]) -> None:
    """Stop before a step that went wrong is saved: the last checkpoint is the last good one.

    Raises:
        ValueError: a loss isn't finite; the same on every rank.
    """
    wrong = {name: value for name, value in values.items() if not math.isfinite(value)}
    if wrong:
        raise ValueError(
            f"step {step + 1}: {', '.join(f'{name} is {value}' for name, value in wrong.items())}. {DIVERGED}"
        )


def loader_workers(trainer: TrainerConfig) -> int:
    """Processes that prepare the batches of a rank; none beside a training on a CPU unless configured."""
    if trainer.loader_workers is not None:
        return trainer.loader_workers
    return WORKERS_BESIDE_GPU if torch.cuda.is_available() else 0


def _stop_when_asked() -> Callable[[], bool]:
    """Whether a signal to stop has come; it no longer ends the process by itself."""
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        asked.append(number)

    for number in STOP_SIGNALS:
        signal.signal(number, note)
    return lambda: bool(asked)


def _start_loader(batches: TrainingBatches, start: int, workers: int) -> Iterator[Batch]:
    """The batches from `start` on, by workers that outlive a signal to stop, but not this process.

    The launcher signals them too, but the rank has a step to finish. What starts them inherits that signals are
    ignored; torch lets workers be terminated again, so it is set in them again.
    """
    loader = training_loader(batches, start, workers)
    loader.worker_init_fn = _begin_worker
    before = [(number, signal.getsignal(number)) for number in STOP_SIGNALS]
    _ignore_stop_signals()
    loaded = iter(loader)
    for number, handler in before:
        signal.signal(number, handler)
    return loaded


def _begin_worker(number: int) -> None:
    begin_worker(number)
    _ignore_stop_signals()


def _ignore_stop_signals() -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _report(
    done: int, losses: dict[str, float], lr: float, throughput: ThroughputMeter, progress: StepProgress, run: Run
) -> None:
    figures = throughput.read()
    run.log_metrics({f"loss/{name}" if name != "loss" else name: value for name, value in losses.items()}, done)
    run.log_metrics({"lr": lr, **{f"speed/{name}": value for name, value in figures.items()}}, done)
    progress.print(line(done, progress.steps, losses, lr, figures, throughput.eta_s(progress.steps - done)))


def write_result(
    spec: TrainSpec,
    model: Clip4Vla,
    weights: dict[str, torch.Tensor],
    metrics: dict[str, Any],
    world_size: int,
    origin: Mapping[str, str],
) -> None:
    """Write the model directory: weights and config that load without DeepSpeed, and `run.json`.

    Args:
        spec: of the training.
        model: of the shape of `weights`.
        weights: float32, by name.
        metrics: the last losses, and the speed.
        world_size: ranks of the training.
        origin: provenance of the training, of when it started.
    """
    result = model.with_initial_weights()
    result.load_state_dict(model.whole_weights(weights))
    with atomic_directory(spec.out) as directory:
        save_model(result, directory, spec.inference)
        facts = {"task": spec.task, "audio_token": spec.audio_token, "world_size": world_size, "run_id": spec.run_id}
        write_json(directory / RUN_FILE, {**facts, "metrics": metrics, **origin})
