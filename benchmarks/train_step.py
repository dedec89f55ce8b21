"""`python -m benchmarks.train_step`: clips a second, FLOP/s, MFU and memory of an optimizer step, without any data.

The engine of a real training on one device, on batches of noise that already lie in memory. On a GPU everything is
measured by one command, a row each: eager, compiled, with all blocks recomputed, and with cached gradients, where
`--batch` clips at once make up batches of `--large-batches`, 4,096 true negatives among them, in the same memory but
for the batch itself. Where a step is one pass, its row there has the kernels of one more step, counted, and which of
them take the most time. On a CPU it is the eager step of a few clips, unless `--variants` names more: `budget` is a
step that is made to fit into `--memory-gb`. FLOPs are the useful ones (see `clip4vla.training.flops`). The row of a
variant that doesn't fit into memory has `out_of_memory`. Needs neither Lance nor PyAV, MLflow or Prefect.
"""

import gc
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import add_device, median_seconds, report, silence
from clip4vla.audio.frontend import max_samples
from clip4vla.clips.batch import Batch
from clip4vla.config import AudioConfig, ModelConfig, OptimizerConfig, RetrievalConfig, TrainerConfig
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.training.flops import StepFlops, peak_flops
from clip4vla.training.memory import MemoryPlan, Wanted, plan_step, step_memory
from clip4vla.training.objectives import ContrastiveObjective
from clip4vla.training.throughput import peak_memory_gb

OPTIMIZER = OptimizerConfig(lr=1e-4, text_lr_ratio=0.1, video_lr_ratio=0.1)
OBJECTIVE = ContrastiveObjective({"text_both": 1.0, "text_video": 1.0, "text_audio": 1.0}, "both")
"""That of fine-tuning with the mean fusion: every tower once."""
VARIANTS = ("eager", "compiled", "recomputed", "budget", "cached")
"""`cached` are the large batches, on a GPU compiled, too."""
LONGEST, SHOWN = 20, 120
"""Kernels that are named, and letters of their names."""


@dataclass(frozen=True)
class Row:
    """One measurement: clips a step, clips at once, and what is turned on."""

    variant: str
    batch: int
    micro_batch: int


def rows(settings: Namespace) -> Iterator[Row]:
    """What is to be measured."""
    for variant in settings.variants:
        batches = settings.large_batches if variant == "cached" else [settings.batch]
        for batch in batches:
            yield Row(variant, batch, min(settings.batch, batch))


def build_model(settings: Namespace, seed: int = 0) -> Clip4Vla:
    """The model of `settings`, as it is initialised, with the published front end."""
    torch.manual_seed(seed)
    return Clip4Vla(ModelConfig(architecture=settings.architecture), AudioConfig(tiles=settings.tiles)).train()


def make_batch(model: Clip4Vla, clips: int, settings: Namespace, seed: int = 0) -> Batch:
    """A batch of noise on the device, in which every clip has all its frames, tiles and tokens."""
    side, device = model.image_size, settings.device
    length = max_samples(model.audio_config, side)
    vocabulary = model.architecture.config["text_cfg"]["vocab_size"]
    draw: dict[str, Any] = {"device": device, "generator": torch.Generator(device).manual_seed(seed)}
    tokens = torch.randint(1, vocabulary - 1, (clips, settings.max_tokens), **draw)
    tokens[:, -1] = vocabulary - 1
    return Batch(
        clip_ids=tuple(f"clip{row}" for row in range(clips)),
        frames=torch.randint(0, 256, (clips, settings.frames, 3, side, side), dtype=torch.uint8, **draw),
        video_mask=torch.ones(clips, settings.frames, dtype=torch.bool, device=device),
        waveform=torch.randn(clips, 1, length, **draw).mul_(0.1),
        samples=torch.full((clips,), length, device=device),
        tokens=tokens.unsqueeze(1),
        audio_types=torch.zeros(clips, dtype=torch.int64, device=device),
    )


def trainer_config(row: Row, settings: Namespace) -> TrainerConfig:
    """How the engine runs."""
    return TrainerConfig(
        precision=settings.precision,
        zero_stage=settings.zero_stage,
        peak_tflops=settings.peak_tflops,
        compile=row.variant == "compiled" or (row.variant == "cached" and settings.device.type == "cuda"),
    )


def memory_plan(row: Row, settings: Namespace, model: Clip4Vla) -> MemoryPlan:
    """What is recomputed and where the moments lie."""
    if row.variant != "budget":
        return MemoryPlan(row.micro_batch, model.blocks if row.variant == "recomputed" else 0)
    training = RetrievalConfig(
        epochs=1, batch_size=row.batch, frames=settings.frames, max_tokens=settings.max_tokens, optimizer=OPTIMIZER
    )
    trainer, on_gpu = trainer_config(row, settings), settings.device.type == "cuda"
    memory = step_memory(model, training, OBJECTIVE, trainer, on_gpu, world_size=1)
    wanted = Wanted(
        row.batch,
        row.micro_batch,
        OBJECTIVE.needs_all_clips,
        trainer.moments_can_lie_on_disk(on_gpu, training.optimizer),
    )
    return plan_step(memory, wanted, round(settings.memory_gb * 1e9))


def measure(row: Row, settings: Namespace, device: torch.device, checkpoints: Path) -> dict[str, Any]:
    """The median step after a warm-up, in which kernels are chosen and towers compiled."""
    from clip4vla.training.engine import Engine

    model = build_model(settings)
    batch = make_batch(model, row.batch, settings)
    micro_batches = -(-row.batch // row.micro_batch)
    trainer, plan = trainer_config(row, settings), memory_plan(row, settings, model)
    engine = Engine(model, OBJECTIVE, OPTIMIZER, trainer, micro_batches, plan, device, checkpoints, None)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = median_seconds(
        lambda: engine.step(batch, OPTIMIZER.lr, (0, 0, 0)), device, warmup=settings.warmup, repeats=settings.steps
    )
    flops = StepFlops(engine.model, OBJECTIVE)(batch)
    peak = peak_flops(device, engine.precision, trainer.peak_tflops)
    memory = torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else peak_memory_gb()
    once = device.type == "cuda" and micro_batches == 1  # more micro-batches launch the same kernels again
    kernels = count_kernels(lambda: engine.step(batch, OPTIMIZER.lr, (0, 0, 0))) if once else {}
    return {
        "s_per_step": seconds,
        "clips_per_s": row.batch / seconds,
        "useful_tflop_per_clip": flops / row.batch / 1e12,
        "tflops": flops / seconds / 1e12,
        "mfu": None if peak is None else flops / seconds / peak,
        "peak_tflops": None if peak is None else peak / 1e12,
        "peak_memory_gb": memory,
        "batch_gb": sum(t.nbytes for t in vars(batch).values() if isinstance(t, torch.Tensor)) / 1e9,
        "precision": engine.precision,
        "zero_stage": engine.zero_stage,
        "cached_gradients": micro_batches > 1,
        "compiled": engine.compiled,
        "recomputed_blocks": plan.recomputed_blocks,
        "blocks": model.blocks,
        "moments_on_disk": plan.moments_on_disk,
        **kernels,
    }


def count_kernels(call: Callable[[], object]) -> dict[str, Any]:
    """Kernels that a call launches on the GPU, the milliseconds in which one runs, and those that take the longest."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        call()
        torch.cuda.synchronize()
    kernels = [event for event in profile.key_averages() if event.device_time_total > 0]
    kernels.sort(key=lambda event: event.self_device_time_total, reverse=True)
    longest = [
        {"name": event.key[:SHOWN], "ms": round(event.self_device_time_total / 1e3, 2), "times": event.count}
        for event in kernels[:LONGEST]
    ]
    busy = sum(event.self_device_time_total for event in kernels)
    return {"kernels": sum(event.count for event in kernels), "busy_ms": busy / 1e3, "longest": longest}


def measure_all(settings: Namespace, directory: Path) -> list[dict[str, Any]]:
    """A row of figures for each measurement; memory of the process, which a CPU's are, is the peak so far."""
    from clip4vla.training.engine import join_ranks

    _, _, device = join_ranks(on_gpu=settings.device.type == "cuda")
    found = []
    for row in rows(settings):
        try:
            figures = measure(row, settings, device, directory / f"{row.variant}{row.batch}")
        except torch.OutOfMemoryError:
            figures = {"out_of_memory": True}
        found.append(vars(row) | figures)
        gc.collect()  # engine and model refer to each other
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Take some steps of each variant, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    add_device(parser)
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, help="default: all but budget on a GPU, eager on a CPU"
    )
    parser.add_argument("--memory-gb", type=float, default=4.0, help="of a rank, for the variant budget")
    parser.add_argument("--architecture", default="ViT-B-32", help="open_clip's name, or a file in architectures/")
    parser.add_argument("--batch", type=int, help="clips at once, and a step but for the cached; default: 128 or 4")
    parser.add_argument("--large-batches", type=int, nargs="+", default=[1024, 4096], help="of the cached variant")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--tiles", type=int, default=6)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--zero-stage", type=int, choices=range(4), default=0)
    parser.add_argument("--peak-tflops", type=float, help="of the device, where it isn't known")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=10, help="timed")
    settings = parser.parse_args(arguments)
    on_gpu = settings.device.type == "cuda"
    settings.variants = settings.variants or ([name for name in VARIANTS if name != "budget"] if on_gpu else ["eager"])
    settings.batch = settings.batch or (128 if on_gpu else 4)
    with silence(), tempfile.TemporaryDirectory() as directory:
        found = measure_all(settings, Path(directory))
    report("train_step", settings.device, settings, {"rows": found}, packages=("deepspeed", "open_clip_torch"))


if __name__ == "__main__":
    main()
