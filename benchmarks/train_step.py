"""`python -m benchmarks.train_step`: clips a second, FLOP/s, MFU and memory of an optimizer step, without any data.

The engine of a real training on one device, on batches of noise that already lie in memory:

    python -m benchmarks.train_step --architecture ViT-B-32 --batch 4096 --micro-batch 128 --compile

A micro-batch smaller than the batch turns cached gradients on: a forward pass more, in the memory of a micro-batch.
FLOPs are the useful ones (see `clip4vla.training.flops`). Needs neither Lance nor PyAV, MLflow or Prefect.
"""

import tempfile
from argparse import ArgumentParser, BooleanOptionalAction, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import median_seconds, report, silence
from clip4vla.audio.frontend import max_samples
from clip4vla.batch import Batch
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.params import AudioParams, ModelParams, OptimizerParams, TrainerParams
from clip4vla.training.flops import StepFlops, peak_flops
from clip4vla.training.meter import peak_memory_gb
from clip4vla.training.objective import Objective

OPTIMIZER = OptimizerParams(
    lr=1e-4,
    text_lr_ratio=0.1,
    vision_lr_ratio=0.1,
    betas=(0.9, 0.98),
    eps=1e-6,
    weight_decay=0.2,
    warmup=0.1,
    clip_norm=1.0,
)
OBJECTIVE = Objective({"text_both": 1.0, "text_video": 1.0, "text_audio": 1.0}, "both")
"""Fine-tuning's: every tower once."""


def build_model(settings: Namespace) -> Clip4Vla:
    """The model of `settings`, as it is initialised, with the published front end."""
    audio = AudioParams(
        sample_rate=16000,
        n_fft=512,
        hop=None,
        tiles=settings.tiles,
        recipe="masked",
        freq_mask_fraction=0.05,
        time_mask_fraction=0.15,
        mask_width=9,
    )
    model = ModelParams(
        architecture=settings.architecture,
        weights=None,
        fusion="mean",
        fusion_layers=2,
        audio_token="both",
        temperature="learned",
    )
    torch.manual_seed(0)
    return Clip4Vla(model, audio).train()


def make_batch(model: Clip4Vla, settings: Namespace) -> Batch:
    """A batch of noise in which every clip has all its frames, tiles and words."""
    clips, side = settings.batch, model.image_size
    length = max_samples(model.audio_params, side)
    vocabulary = model.architecture.config["text_cfg"]["vocab_size"]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, vocabulary - 1, (clips, settings.words), generator=generator)
    tokens[:, -1] = vocabulary - 1
    frames = (clips, settings.frames, 3, side, side)
    return Batch(
        clip_ids=tuple(f"clip{row}" for row in range(clips)),
        frames=torch.randint(0, 256, frames, dtype=torch.uint8, generator=generator),
        video_mask=torch.ones(clips, settings.frames, dtype=torch.bool),
        waveform=torch.randn(clips, 1, length, generator=generator).mul_(0.1),
        samples=torch.full((clips,), length),
        tokens=tokens.unsqueeze(1),
        audio_types=torch.zeros(clips, dtype=torch.int64),
    )


def trainer_params(settings: Namespace) -> TrainerParams:
    """How the engine is to run, by the command line."""
    return TrainerParams(
        ranks=1,
        precision=settings.precision,
        zero_stage=settings.zero_stage,
        activation_checkpointing=settings.activation_checkpointing,
        compile=settings.compile,
        peak_tflops=settings.peak_tflops,
        loader_workers=0,
        checkpoint_every=1,
        keep_checkpoints=1,
        log_every=1,
    )


def measure(settings: Namespace, checkpoints: Path) -> tuple[dict[str, Any], torch.device]:
    """The median step after a warm-up, in which kernels are chosen and towers compiled; and where it was taken."""
    from clip4vla.training.engine import Engine, join_ranks

    _, _, device = join_ranks()
    model = build_model(settings)
    batch = make_batch(model, settings).to(device)
    micro_batches = -(-settings.batch // settings.micro_batch)
    trainer = trainer_params(settings)
    engine = Engine(model, OBJECTIVE, OPTIMIZER, trainer, micro_batches, device, checkpoints)
    seconds = median_seconds(
        lambda: engine.step(batch, OPTIMIZER.lr, (0, 0, 0)), device, warmup=settings.warmup, repeats=settings.steps
    )
    flops = StepFlops(engine.model, OBJECTIVE)(batch)
    peak = peak_flops(device, engine.precision, trainer.peak_tflops)
    results = {
        "s_per_step": seconds,
        "clips_per_s": settings.batch / seconds,
        "useful_tflop_per_clip": flops / settings.batch / 1e12,
        "tflops": flops / seconds / 1e12,
        "mfu": None if peak is None else flops / seconds / peak,
        "peak_tflops": None if peak is None else peak / 1e12,
        "peak_memory_gb": peak_memory_gb(),
        "precision": engine.precision,
        "zero_stage": engine.zero_stage,
        "cached_gradients": micro_batches > 1,
        "compiled": engine.compiled,
    }
    return results, device


def main(arguments: Sequence[str] | None = None) -> None:
    """Take some steps, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.add_argument("--architecture", default="ViT-B-32", help="open_clip's name, or a file in architectures/")
    parser.add_argument("--batch", type=int, default=64, help="clips a step")
    parser.add_argument("--micro-batch", type=int, help="clips at once; default: the whole batch, nothing cached")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--tiles", type=int, default=6)
    parser.add_argument("--words", type=int, default=32)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--zero-stage", type=int, choices=range(4), default=0)
    parser.add_argument("--activation-checkpointing", action=BooleanOptionalAction, default=False)
    parser.add_argument("--compile", action=BooleanOptionalAction, default=False)
    parser.add_argument("--peak-tflops", type=float, help="of the device, where it isn't known")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, default=10, help="timed")
    settings = parser.parse_args(arguments)
    settings.micro_batch = settings.micro_batch or settings.batch
    with silence(), tempfile.TemporaryDirectory() as directory:
        results, device = measure(settings, Path(directory))
    report("train_step", device, settings, results, packages=("deepspeed", "open_clip_torch"))


if __name__ == "__main__":
    main()
