"""A job in, a run result out: reads like the table of contents of a training."""

import shutil
import signal
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch

from clip4vla.atomic import atomic_directory, write_json
from clip4vla.audio.frontend import max_samples
from clip4vla.batch import Batch
from clip4vla.clips.loader import ClipStore, Order, TrainingBatches, training_loader
from clip4vla.clips.loader import View as ClipView
from clip4vla.model.caption import CaptionDecoder
from clip4vla.model.checkpoints import load_model, save_model
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.fusion import SequenceFusion
from clip4vla.model.text import Tokenizer
from clip4vla.model.towers import check_state
from clip4vla.params import CaptionParams, FinetuneParams, TrainerParams
from clip4vla.tracking import Run, open_tracker, provenance
from clip4vla.training.engine import Engine, join_ranks
from clip4vla.training.flops import StepFlops, peak_flops
from clip4vla.training.job import PROGRESS_FILE, RUN_FILE, Job
from clip4vla.training.meter import Meter, line
from clip4vla.training.objective import criterion_of
from clip4vla.training.optimizer import learning_rate

STOPPED = 128 + signal.SIGTERM
"""Exit status of a training that was asked to stop and left a checkpoint."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


WORKERS_BESIDE_GPU = 8


def train(job: Job) -> None:
    """Train as `job` says, from its last checkpoint if there is one, and write the run result.

    Raises:
        ValueError: the job doesn't fit the data or this machine.
        SystemExit: the training was asked to stop by SIGTERM or SIGINT; a checkpoint is there.
    """
    rank, world_size, device = join_ranks()
    torch.manual_seed(job.seed)
    model = build_model(job)
    store = ClipStore([corpus.clips for corpus in job.corpora])
    order = order_clips(job, store, world_size)
    micro_batches = -(-(order.clips_per_step // world_size) // job.training.micro_batch_size)
    criterion = criterion_of(job.training, job.audio_token)
    checkpoints = job.checkpoints / job.fingerprint()
    engine = Engine(model, criterion, job.training.optimizer, job.trainer, micro_batches, device, checkpoints)
    step = engine.resume()
    batches = TrainingBatches(store, clip_view(job, model), order, rank, world_size)
    tracker = open_tracker(job.root, rank)
    with tracker.start(job.task, job.task, {}, run_id=job.run_id, system_metrics=True) as run:
        figures = _run_steps(job, engine, batches, step, run)
        weights = engine.collect_weights()
        if weights is not None:
            write_result(job, engine.model, weights, figures, world_size)
            shutil.rmtree(job.checkpoints, ignore_errors=True)


def build_model(job: Job) -> Clip4Vla:
    """The model to start from: as it is initialised, or with the weights of a run result.

    A fusion or a caption decoder that the run result doesn't have starts from its text tower, as `SequenceFusion` and
    `CaptionDecoder` do; a cross-attending score that it doesn't have prefers nothing. Captioning leaves the text tower
    as it is.

    Raises:
        ValueError: the run result's fusion is of another depth than the job's, or its decoder's vocabulary isn't of
            the size of the job's.
    """
    if job.start_from is None:
        vocabulary = _vocabulary(job, job.model.architecture)
        model = Clip4Vla(job.model, job.audio, vocabulary=vocabulary, scores_pairs=_scores_pairs(job))
    else:
        model = _continued(job, load_model(job.start_from))
    if model.decoder is not None:
        model.freeze_text()
    return model.train()


def _continued(job: Job, before: Clip4Vla) -> Clip4Vla:
    """The job's model with the weights of `before`."""
    vocabulary = _vocabulary(job, before.architecture.name)
    model = Clip4Vla(job.model, job.audio, before.architecture, vocabulary, _scores_pairs(job))
    model.clip.load_state_dict(before.clip.state_dict())
    model.audio.load_state_dict(before.audio.state_dict())
    if model.fusion is not None:
        fusion = (before.fusion or SequenceFusion(before.clip, job.model.fusion_layers)).state_dict()
        check_state(model.fusion.state_dict(), fusion, f"the fusion of {job.start_from}")
        model.fusion.load_state_dict(fusion)
    if vocabulary is not None and model.decoder is not None:
        decoder = (before.decoder or CaptionDecoder(before.clip, vocabulary)).state_dict()
        check_state(model.decoder.state_dict(), decoder, f"the caption decoder of {job.start_from}")
        model.decoder.load_state_dict(decoder)
    if model.scorer is not None and before.scorer is not None:
        model.scorer.load_state_dict(before.scorer.state_dict())
    return model


def _scores_pairs(job: Job) -> bool:
    """Whether the job teaches the cross-attending score."""
    return isinstance(job.training, FinetuneParams) and job.training.text_cross > 0


def _vocabulary(job: Job, architecture: str) -> torch.Tensor | None:
    """The tokens that the job's captions may have, None where it isn't about captions."""
    if not isinstance(job.training, CaptionParams):
        return None
    tokenizer = Tokenizer(architecture, job.training.words)
    if job.training.vocabulary == "full":
        return tokenizer.full_vocabulary()
    return tokenizer.vocabulary(ClipStore([corpus.clips for corpus in job.corpora]).sentences())


def order_clips(job: Job, store: ClipStore, world_size: int) -> Order:
    """The order of the job's clips; every rank takes an equal share of each batch.

    Raises:
        ValueError: the batch has no equal shares, or there are fewer clips than ranks.
    """
    weights = tuple(corpus.weight for corpus in job.corpora) if len(job.corpora) > 1 else None
    wanted = job.training.batch_size
    if wanted % world_size:
        raise ValueError(f"{job.task}.batch_size is {wanted}, which {world_size} ranks can't share equally")
    batch_size = min(wanted, len(store)) // world_size * world_size
    if batch_size == 0:
        raise ValueError(f"{len(store)} clips can't be shared among {world_size} ranks")
    return Order(store.sizes, weights, batch_size, job.training.epochs, job.seed)


def clip_view(job: Job, model: Clip4Vla) -> ClipView:
    """What of a clip the job's model is shown."""
    tokenize = Tokenizer(model.architecture.name, min(job.training.words, model.context_length))
    samples = max_samples(job.audio, model.image_size)
    training = job.training
    return ClipView(
        training.frames,
        model.image_size,
        samples,
        tokenize,
        training.sentences,
        training.time_shift,
        training.min_words if isinstance(training, CaptionParams) else 0,
    )


def _run_steps(job: Job, engine: Engine, batches: TrainingBatches, start: int, run: Run) -> dict[str, float]:
    """The steps from `start` on; final losses, and the figures of the meter over all of them."""
    steps = batches.order.steps
    loaded = _start_loader(batches, start, loader_workers(job.trainer))
    stop = _stop_when_asked()
    flops = StepFlops(engine.model, engine.criterion)
    meter = Meter(batches.order.clips_per_step, peak_flops(engine.device, engine.precision, job.trainer.peak_tflops))
    losses: dict[str, float] = {}
    waiting_since = time.monotonic()
    for step, batch in enumerate(loaded, start):
        waited = time.monotonic() - waiting_since
        lr = learning_rate(step, steps, job.training.optimizer)
        losses = engine.step(batch, lr, (job.seed, step, batches.rank))
        meter.step(waited, flops(batch))
        done = step + 1
        if done % job.trainer.log_every == 0 or done == steps:
            _report(done, steps, losses, lr, meter, run, batches.rank)
            if batches.rank == 0:
                write_json(job.checkpoints / PROGRESS_FILE, {"step": done, "steps": steps})
        # the signal reaches the ranks at different moments, but they must save the same step
        stopping = engine.any_rank(stop())
        if done < steps and (stopping or done % job.trainer.checkpoint_every == 0):
            run.flush()  # a step that is never done again is on record
            engine.save(done, job.trainer.keep_checkpoints)
            if stopping:
                raise SystemExit(STOPPED)
        waiting_since = time.monotonic()
    return losses | meter.read_whole()


def loader_workers(trainer: TrainerParams) -> int:
    """Processes that prepare a rank's batches; none beside a CPU's training unless they are asked for."""
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
    """The batches from `start` on, by workers that outlive a signal to stop.

    The launcher signals them too, but the rank has a step to finish. What starts them inherits that signals are
    ignored; torch lets workers be terminated again, so they are told once more.
    """
    loader = training_loader(batches, start, workers)
    loader.worker_init_fn = _ignore_stop_signals
    before = [(number, signal.getsignal(number)) for number in STOP_SIGNALS]
    _ignore_stop_signals()
    loaded = iter(loader)
    for number, handler in before:
        signal.signal(number, handler)
    return loaded


def _ignore_stop_signals(_: int = 0) -> None:
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _report(done: int, steps: int, losses: dict[str, float], lr: float, meter: Meter, run: Run, rank: int) -> None:
    figures = meter.read()
    run.metrics({f"loss/{name}" if name != "loss" else name: value for name, value in losses.items()}, done)
    run.metrics({"lr": lr, **{f"speed/{name}": value for name, value in figures.items()}}, done)
    if rank == 0:
        print(line(done, steps, losses, lr, figures, meter.eta_s(steps - done)), flush=True)


def write_result(
    job: Job, model: Clip4Vla, weights: dict[str, torch.Tensor], figures: dict[str, Any], world_size: int
) -> None:
    """Write the run result: weights and config that load without DeepSpeed, and `run.json`."""
    result = model.twin()
    result.load_state_dict(weights)
    with atomic_directory(job.out) as directory:
        save_model(result, directory)
        facts = {"task": job.task, "audio_token": job.audio_token, "world_size": world_size, "run_id": job.run_id}
        write_json(directory / RUN_FILE, facts | {"metrics": figures} | provenance(job.root))
