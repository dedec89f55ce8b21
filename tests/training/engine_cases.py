"""The trainings that `test_engine` checks, in processes of their own: `python -m tests.training.engine_cases OUT`.

Groups of 1, 2 and 3 gloo ranks run through their cases, with engine after engine in the same processes; the imports
take seconds, so they are forked from one process that has done them. Out: OUT/CASE.pt. With `cuda` as a second argument
it is one NCCL rank on a GPU, see `test_engine_on_gpu`.
"""

import importlib
import multiprocessing
import os
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from clip4vla.clips.batch import Batch
from clip4vla.config import EXPERT_TERMS, OptimizerConfig, TrainerConfig
from clip4vla.training.engine import Engine, StepAbandonedError, checkpoint_to_resume, join_ranks
from clip4vla.training.memory import MemoryPlan
from clip4vla.training.objectives import CaptioningObjective, ContrastiveObjective, Objective
from tests.training.tiny import EVERYTHING, OPTIMIZER, build, build_captioner, make_batch, with_identical_captions

CLIPS = 12
SEED = 5
IMPORTED_BY_A_STEP = ("torch._dynamo", "deepspeed.runtime.zero.muon.muon_optimizer", "clip4vla.audio.compiled")
"""What torch, DeepSpeed and the front end import when they are first used."""


@dataclass(frozen=True)
class Case:
    """One training of a few steps."""

    world_size: int
    micro_batches: int
    zero_stage: int = 0
    precision: str = "fp32"
    optimizer_name: str = "adamw"
    temperature: str = "learned"
    fusion: str = "mean"
    dropout: float = 0.0
    clip_norm: float = 1000.0
    recomputed: int = 0
    moments_on_disk: bool = False
    compile: bool = False
    steps: int = 3
    leave_out: tuple[str, ...] = ()
    captions: bool = False
    cross_encoder: bool = False
    identical: bool = False

    @property
    def objective(self) -> Objective:
        """The contrastive terms, or captioning; other ranks would draw other modalities to drop, so none is dropped."""
        return CaptioningObjective("both", "both", 0.1, modality_dropout=0.0) if self.captions else self.contrastive

    @property
    def contrastive(self) -> ContrastiveObjective:
        """Every term but those that the case leaves out; identical texts are not pushed apart."""
        everything = dict(EVERYTHING.weights) | ({"cross_encoder": 0.8} if self.cross_encoder else {})
        everything |= {"shared_text_both": 0.9} if self.identical else {}
        if self.identical and self.fusion == "experts":
            everything |= dict(zip(EXPERT_TERMS, (1.1, 0.4, 0.7), strict=True))
        left_out = {*self.leave_out, *(["text_text"] if self.identical else [])}
        weights = {name: weight for name, weight in everything.items() if name not in left_out}
        return ContrastiveObjective(weights, EVERYTHING.audio_token)

    @property
    def optimizer(self) -> OptimizerConfig:
        return OPTIMIZER.model_copy(update={"name": self.optimizer_name, "clip_norm": self.clip_norm})

    def trainer(self) -> TrainerConfig:
        return TrainerConfig(
            precision=self.precision,
            zero_stage=self.zero_stage,
            compile=self.compile,
        )

    def batch(self, step: int) -> Batch:
        """The clips of all ranks."""
        batch = make_batch(CLIPS, step)
        return with_identical_captions(batch) if self.identical else batch

    def rows(self, rank: int) -> slice:
        """The clips of a rank."""
        share = CLIPS // self.world_size
        return slice(rank * share, (rank + 1) * share)


EXACT = {
    "one_pass": Case(1, 1, dropout=0.2),
    "one_step": Case(1, 2, dropout=0.2, steps=1),
    "sequence": Case(1, 2, fusion="sequence"),
    "cross_encoder": Case(1, 3, fusion="sequence", cross_encoder=True),
    "fixed": Case(1, 3, temperature="fixed"),
    "uneven": Case(1, 5, dropout=0.2, clip_norm=0.05),
    "recomputed": Case(1, 2, dropout=0.2, recomputed=99),
    "ranks": Case(2, 1, dropout=0.2),
    "ranks_fixed": Case(2, 2, zero_stage=1, temperature="fixed"),
    "ranks_zero2": Case(2, 4, zero_stage=2, dropout=0.2, clip_norm=0.05),
    "ranks_zero3": Case(2, 2, zero_stage=3, dropout=0.2),
    "ranks_cross_encoder_zero3": Case(2, 2, zero_stage=3, fusion="sequence", cross_encoder=True),
    "three_zero1": Case(3, 3, zero_stage=1, dropout=0.2),
    "identical": Case(1, 1, identical=True),
    "experts": Case(1, 1, fusion="experts", dropout=0.2),
    "experts_uneven": Case(1, 5, fusion="experts", identical=True, dropout=0.2, recomputed=99),
    "ranks_experts": Case(2, 1, fusion="experts", identical=True),
    "ranks_experts_zero1": Case(2, 2, zero_stage=1, fusion="experts", identical=True, clip_norm=0.05),
    "ranks_experts_zero2": Case(2, 3, zero_stage=2, fusion="experts", identical=True, dropout=0.2),
    "ranks_experts_zero3": Case(2, 2, zero_stage=3, fusion="experts", identical=True, recomputed=99),
    "three_experts": Case(3, 2, fusion="experts", identical=True, dropout=0.2),
    "muon": Case(1, 2, optimizer_name="muon", fusion="experts", identical=True, clip_norm=0.05),
    "ranks_muon": Case(2, 1, optimizer_name="muon", dropout=0.2),
    "three_muon": Case(3, 2, optimizer_name="muon", fusion="sequence"),
}
"""Must equal the naive training."""
CAPTIONS = {
    "captions": Case(1, 1, captions=True),
    "captions_uneven": Case(1, 5, captions=True, clip_norm=0.05),
    "captions_recomputed": Case(1, 2, captions=True, recomputed=99),
    "captions_sequence": Case(2, 2, captions=True, fusion="sequence"),
    "captions_zero1": Case(2, 3, captions=True, zero_stage=1),
    "captions_zero3": Case(2, 2, captions=True, zero_stage=3),
}
"""Must equal one pass over the whole batch."""
SAME = {
    "whole": Case(1, 2, dropout=0.2, identical=True, fusion="experts"),
    "whole_recomputed_in_part": Case(1, 2, dropout=0.2, identical=True, fusion="experts", recomputed=3),
    "whole_recomputed": Case(1, 2, dropout=0.2, identical=True, fusion="experts", recomputed=99),
    "whole_on_disk": Case(1, 2, dropout=0.2, identical=True, fusion="experts", recomputed=99, moments_on_disk=True),
}
"""Differ in what is kept in memory, and must be equal to the last bit."""
HALF = {
    "half_products": Case(2, 2, precision="bf16", dropout=0.2, leave_out=("text_text", "video_video")),
    "half": Case(2, 2, zero_stage=1, precision="bf16", leave_out=("text_text", "video_video")),
    "half_experts_zero3": Case(
        2, 2, zero_stage=3, precision="bf16", fusion="experts", identical=True, leave_out=("text_text", "video_video")
    ),
}
"""Must come near it. Terms of embeddings with themselves are differences of numbers that bf16 rounds to the same."""
HALF_CAPTIONS = {"half_captions": Case(1, 2, precision="bf16", captions=True)}
ON_GPU = {
    **{name: case for name, case in EXACT.items() if case.world_size == 1},
    "ranks_zero2": replace(EXACT["ranks_zero2"], world_size=1),
    "ranks_experts_zero1": replace(EXACT["ranks_experts_zero1"], world_size=1),
    "ranks_experts_zero3": replace(EXACT["ranks_experts_zero3"], world_size=1),
}
"""Of `EXACT`, on one GPU."""
HALF_ON_GPU = {name: replace(case, world_size=1, dropout=0.0) for name, case in HALF.items()}
RESUMED = {
    "on_disk": Case(2, 2, leave_out=("audio_audio",), moments_on_disk=True),
    "zero0": Case(2, 2, leave_out=("audio_audio",)),
    "muon": Case(2, 2, optimizer_name="muon", leave_out=("audio_audio",)),
    "zero1": Case(2, 2, zero_stage=1, leave_out=("audio_audio",), fusion="experts", identical=True),
    "zero3": Case(2, 2, zero_stage=3, leave_out=("audio_audio",), fusion="experts", identical=True),
}
"""Saved at step 2 by two ranks, resumed by two and by one, which would draw other masks for SpecAugment."""
LEFT = {
    "left_zero0": (Case(2, 2, dropout=0.2, identical=True), 3),
    "left_zero1": (Case(2, 3, zero_stage=1, fusion="experts", identical=True), 1),
    "left_zero2": (Case(2, 2, zero_stage=2, dropout=0.2), 2),
    "left_zero3": (Case(2, 2, zero_stage=3, fusion="experts", identical=True), 3),
    "left_half": (Case(2, 2, zero_stage=1, precision="bf16"), 3),
    "left_captions": (Case(2, 3, captions=True, zero_stage=1), 2),
}
"""The third step is left after so many passes, when rank 1 alone is asked to stop; then saved and resumed."""
OTHER_STAGE = {"on_disk": 0, "zero0": 0, "muon": 0, "zero1": 2, "zero3": 3}
"""ZeRO stage that each is resumed with on one rank."""


class Partitioned(Engine):
    """ZeRO 3 would not partition parameters as small as these."""

    def _config(self, *arguments: Any) -> dict[str, Any]:
        config = super()._config(*arguments)
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return config


def start(case: Case, device: torch.device, checkpoints: Path) -> Engine:
    if case.captions:
        model = build_captioner(case.fusion)
    else:
        model = build(case.temperature, case.fusion, case.dropout, case.cross_encoder)
    plan = MemoryPlan(micro_batch_size=-(-CLIPS // case.micro_batches), recomputed_blocks=case.recomputed)
    plan = replace(plan, moments_on_disk=case.moments_on_disk)
    found = checkpoint_to_resume(checkpoints)
    return Partitioned(
        model, case.objective, case.optimizer, case.trainer(), case.micro_batches, plan, device, checkpoints, found
    )


def go_on(engine: Engine, case: Case, rank: int, steps: range) -> list[dict[str, float]]:
    batches = {step: case.batch(step)[case.rows(rank)] for step in steps}
    return [engine.step(batch, OPTIMIZER.lr, (SEED, step, rank)) for step, batch in batches.items()]


def keep(out: Path, name: str, rank: int, losses: list[dict[str, float]], engine: Engine) -> None:
    """Save the losses that this rank got and, on rank 0, the weights."""
    weights = engine.collect_weights()
    torch.save({"losses": losses, "weights": weights}, out / f"{name}.{rank}.pt")


def of_ranks(world_size: int, rank: int, port: int, out: Path) -> None:
    """Everything that ranks of one world size do."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    _, _, device = join_ranks(on_gpu=False)
    for name, case in (EXACT | CAPTIONS | HALF | HALF_CAPTIONS | SAME).items():
        if case.world_size == world_size:
            _train(name, case, device, out, rank)
    for name, case in RESUMED.items():
        if case.world_size == world_size:
            _train_on(name, case, device, out, rank)
        elif world_size == 1:
            other = replace(case, world_size=1, zero_stage=OTHER_STAGE[name])
            _resume(other, device, out / "checkpoints" / name, out, f"{name}.elsewhere", rank)
    if world_size == 2:
        for name, (case, passes) in LEFT.items():
            _leave(name, case, passes, device, out, rank)
        _agree(device, out, rank)


def on_gpu(out: Path) -> None:
    """Everything that one rank on a GPU does."""
    rank, _, device = join_ranks(on_gpu=True)
    for name, case in (ON_GPU | HALF_ON_GPU | CAPTIONS | HALF_CAPTIONS | SAME).items():
        if case.world_size == 1 and not case.moments_on_disk:
            _train(name, case, device, out, rank)
    for name, case in RESUMED.items():
        if not case.moments_on_disk:
            _train_on(name, replace(case, world_size=1), device, out, rank)


def _train(name: str, case: Case, device: torch.device, out: Path, rank: int) -> None:
    engine = start(case, device, out / "checkpoints" / name)
    keep(out, name, rank, go_on(engine, case, rank, range(case.steps)), engine)


def _train_on(name: str, case: Case, device: torch.device, out: Path, rank: int) -> None:
    """Train through, and resume what was saved on the way."""
    checkpoints = out / "checkpoints" / name
    engine = start(case, device, checkpoints)
    go_on(engine, case, rank, range(2))
    engine.save(2, keep=1)
    keep(out, f"{name}.through", rank, go_on(engine, case, rank, range(2, 4)), engine)
    _resume(case, device, checkpoints, out, f"{name}.again", rank)


def _resume(case: Case, device: torch.device, checkpoints: Path, out: Path, name: str, rank: int) -> None:
    engine = start(case, device, checkpoints)
    done = engine.resume()
    keep(out, name, rank, go_on(engine, case, rank, range(done, 4)), engine)


def _leave(name: str, case: Case, passes: int, device: torch.device, out: Path, rank: int) -> None:
    through = start(case, device, out / "checkpoints" / f"{name}.through")
    keep(out, f"{name}.through", rank, go_on(through, case, rank, range(4)), through)
    engine = start(case, device, out / "checkpoints" / name)
    go_on(engine, case, rank, range(2))
    before = {key: weight.clone() for key, weight in (engine.collect_weights() or {}).items()}
    asked, places = iter(range(1, 100)), []
    try:
        engine.step(
            case.batch(2)[case.rows(rank)],
            OPTIMIZER.lr,
            (SEED, 2, rank),
            lambda: rank == 1 and next(asked) == passes,
            lambda what, share: places.append((what, share)),
        )
    except StepAbandonedError:
        engine.save(2, keep=1)
    else:
        raise AssertionError("the step was not left")
    torch.save({"before": before, "after": engine.collect_weights(), "places": places}, out / f"{name}.left.{rank}.pt")
    _resume(case, device, out / "checkpoints" / name, out, f"{name}.again", rank)


def _agree(device: torch.device, out: Path, rank: int) -> None:
    engine = start(Case(2, 1), device, out / "checkpoints" / "none")
    answers = [engine.any_rank(flag) for flag in (False, rank == 1, True)]
    assert engine.any_rank_each([False, rank == 1, True]) == answers
    torch.save(answers, out / f"agreed.{rank}.pt")


def main() -> None:
    out = Path(sys.argv[1])
    if sys.argv[2:] == ["cuda"]:
        on_gpu(out)
        return
    for module in IMPORTED_BY_A_STEP:
        importlib.import_module(module)
    fork = multiprocessing.get_context("fork")
    for world_size in (2, 1, 3):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        ranks = [fork.Process(target=of_ranks, args=(world_size, rank, port, out)) for rank in range(world_size)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit(f"ranks of {world_size} ended with {[process.exitcode for process in ranks]}")


if __name__ == "__main__":
    main()
