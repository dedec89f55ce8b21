"""`python -m benchmarks.precision`: the losses of a training in bf16 against those in float32, step by step.

The engine of a real training learns which frames, sound and text of noise belong together, the same batches in both
precisions, from the same weights, with several seeds of the weights and the batches. `gap` is the difference of the
mean losses of the two precisions over the last quarter of the steps, `noise` the standard deviation of that loss over
the seeds in float32. Needs neither Lance nor PyAV, MLflow or Prefect.
"""

import gc
import tempfile
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from benchmarks.measure import add_device, report, silence
from benchmarks.train_step import OBJECTIVE, build_model, make_batch
from clip4vla.config import OptimizerConfig, TrainerConfig
from clip4vla.training.memory import MemoryPlan

PRECISIONS = ("fp32", "bf16")


def losses(precision: str, seed: int, settings: Namespace, checkpoints: Path) -> list[float]:
    """The loss of every step."""
    from clip4vla.training.engine import Engine

    model = build_model(settings, seed)
    optimizer = OptimizerConfig(lr=settings.lr)
    trainer = TrainerConfig(precision=precision)
    engine = Engine(
        model, OBJECTIVE, optimizer, trainer, 1, MemoryPlan(settings.batch), settings.device, checkpoints, None
    )
    batches = [
        make_batch(model, settings.batch, settings, seed=100 * seed + number) for number in range(settings.batches)
    ]
    return [
        engine.step(batches[step % settings.batches], settings.lr, (seed, step, 0))["loss"]
        for step in range(settings.steps)
    ]


def compare(curves: dict[str, list[list[float]]]) -> dict[str, float]:
    """How far bf16 ends from float32, and how far the seeds of float32 end from each other."""
    ends = {name: [mean(curve[-(len(curve) // 4) :]) for curve in of_seeds] for name, of_seeds in curves.items()}
    return {
        "fp32_end": mean(ends["fp32"]),
        "bf16_end": mean(ends["bf16"]),
        "gap": mean(ends["bf16"]) - mean(ends["fp32"]),
        "noise": stdev(ends["fp32"]),
        "first_step_gap": max(abs(a[0] - b[0]) for a, b in zip(curves["fp32"], curves["bf16"], strict=True)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Train in both precisions with every seed, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.precision", description=__doc__)
    add_device(parser)
    parser.add_argument("--architecture", default="ViT-B-32", help="open_clip's name, or a file in architectures/")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=2, help="that are shown again and again")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--lr", type=float, default=3e-5)
    parser.add_argument("--frames", type=int, default=2)
    parser.add_argument("--tiles", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=16)
    settings = parser.parse_args(arguments)
    curves: dict[str, list[list[float]]] = {name: [] for name in PRECISIONS}
    with silence(), tempfile.TemporaryDirectory() as directory:
        from clip4vla.training.engine import join_ranks

        join_ranks(on_gpu=settings.device.type == "cuda")
        for seed in settings.seeds:
            for precision in PRECISIONS:
                curves[precision].append(losses(precision, seed, settings, Path(directory) / f"{precision}{seed}"))
                gc.collect()  # engine and model refer to each other
    results: dict[str, Any] = compare(curves) | {"losses": curves}
    report("precision", settings.device, settings, results, packages=("deepspeed",))


if __name__ == "__main__":
    main()
