"""`python -m benchmarks.kill_resume`: kill -9 at random moments, resume each time, and compare the result.

A small pretraining runs undisturbed. The launcher or one of the ranks of the same training is then killed `--kills`
times, at any moment of a start, a step or a checkpoint, and the training is resumed from what is left. In the end its
loss curve in MLflow, every repeated step included, and its weights must be those of the undisturbed one to the last
digit; else the exit status is 1.
"""

import os
import random
import shutil
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.clips import write_clips
from benchmarks.measure import report
from benchmarks.small_training import CLIPS, Training, make_spec
from clip4vla.tracking.run import start_run
from clip4vla.tracking.store import open_client
from clip4vla.training.spec import TrainSpec
from clip4vla.utils.supervise import wait_until_none_in

Curves = dict[str, dict[int, set[float]]]
"""By metric and step the values that were recorded, one where the step was never repeated, or always the same."""
STARTING = 0.2
"""Share of the kills that come before the first step."""


@dataclass(frozen=True)
class Pace:
    """How fast the undisturbed training was."""

    start_s: float
    """Until its first step was printed."""
    step_s: float
    """Between two steps, checkpoints included."""


def with_run(spec: TrainSpec, name: str) -> TrainSpec:
    """The spec with an MLflow run of its own, which every attempt continues."""
    with start_run(spec.root, "kill_resume", name) as run:
        return spec.model_copy(update={"run_id": run.run_id})


def run_through(spec: TrainSpec) -> Pace:
    """Train undisturbed.

    Raises:
        RuntimeError: the training fails; the message has the end of its standard error.
    """
    started = time.monotonic()
    training = Training(spec)
    training.until(1)
    first = time.monotonic()
    training.until(sys.maxsize)
    ended = time.monotonic()
    status, errors = training.end()
    if status:
        raise RuntimeError(f"a training ended with status {status}:\n{errors[-3000:]}")
    return Pace(first - started, (ended - first) / max(1, len(training.steps) - 1))


def kill_once(spec: TrainSpec, step: int, pace: Pace, rng: random.Random) -> dict[str, Any] | None:
    """Resume, kill at about `step` or while starting; what was killed, or None where the training ended first."""
    shutil.rmtree(spec.out, ignore_errors=True)  # of a training that ended first: it starts again, and is killed again
    training = Training(spec)
    if rng.random() < STARTING:
        time.sleep(rng.uniform(0, pace.start_s))
    else:
        training.until(step)
        time.sleep(rng.uniform(0, spec.trainer.checkpoint_every * pace.step_s))
    victims = {"launcher": training.process.pid} | {f"rank {rank}": pid for rank, pid in training.ranks().items()}
    victim = rng.choice(sorted(victims))
    with suppress(ProcessLookupError):
        os.kill(victims[victim], signal.SIGKILL)
    status, _ = training.end()
    wait_until_none_in(spec.root)
    return {"victim": victim, "first_step": training.steps[0] if training.steps else None} if status else None


def kill_often(spec: TrainSpec, steps: int, kills: int, pace: Pace, rng: random.Random) -> list[dict[str, Any]]:
    """Kill the training `kills` times, spread over its steps, and then let it end."""
    done: list[dict[str, Any]] = []
    last = steps - 2 * spec.trainer.checkpoint_every
    while len(done) < kills:
        low, high = (1 + last * index // kills for index in (len(done), len(done) + 1))
        if killed := kill_once(spec, rng.randint(low, high), pace, rng):
            done.append(killed)
            print(f"kill {len(done)}/{kills}: {killed}", file=sys.stderr, flush=True)
    if not spec.out.is_dir():
        run_through(spec)
    return done


def curves(spec: TrainSpec) -> Curves:
    """What MLflow has of the losses and rates of a spec's run."""
    client = open_client(spec.root)
    assert spec.run_id is not None
    names = [name for name in client.get_run(spec.run_id).data.metrics if name == "lr" or name.startswith("loss")]
    found: Curves = {name: {} for name in names}
    for name in names:
        for metric in client.get_metric_history(spec.run_id, name):
            found[name].setdefault(metric.step, set()).add(metric.value)
    return found


def differing_weights(a: Path, b: Path) -> list[str]:
    """Names of the weights of two run results that aren't the same to the last bit."""
    first, second = (load_file(run / "model.safetensors") for run in (a, b))
    shared = first.keys() & second.keys()
    return sorted(
        (first.keys() ^ second.keys()) | {name for name in shared if not torch.equal(first[name], second[name])}
    )


def compare(undisturbed: TrainSpec, killed: TrainSpec, steps: int) -> dict[str, Any]:
    """What differs between the two trainings; `equal` where nothing does and no step is missing."""
    expected, found = curves(undisturbed), curves(killed)
    complete = all(curve.keys() == set(range(1, steps + 1)) for curve in expected.values())
    wrong = sorted(
        {step for name in expected | found for step in _differing(expected.get(name, {}), found.get(name, {}))}
    )
    weights = differing_weights(undisturbed.out, killed.out)
    return {
        "metrics": sorted(expected),
        "differing_steps": wrong,
        "differing_weights": weights,
        "equal": complete and bool(expected) and not wrong and not weights,
    }


def _differing(expected: dict[int, set[float]], found: dict[int, set[float]]) -> list[int]:
    return [step for step in expected | found if expected.get(step) != found.get(step)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill and resume, compare, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.kill_resume", description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, help="of the training, an even number; default: 6 a kill, at least 30")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    settings = parser.parse_args(arguments)
    settings.steps = settings.steps or max(30, 6 * settings.kills)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory).resolve()
        write_clips(root / "train.lance", CLIPS)
        through, killed = (
            with_run(make_spec(root, name, settings.steps, ranks=settings.ranks), name)
            for name in ("through", "killed")
        )
        pace = run_through(through)
        kills = kill_often(killed, settings.steps, settings.kills, pace, random.Random(settings.seed))
        results = compare(through, killed, settings.steps)
    results |= {"kills": len(kills), "victims": Counter(kill["victim"] for kill in kills), "moments": kills}
    results |= {"start_s": pace.start_s, "step_s": pace.step_s, "total_s": time.monotonic() - started}
    report("kill_resume", torch.device("cpu"), settings, results, packages=("deepspeed", "mlflow", "pylance"))
    if not results["equal"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
