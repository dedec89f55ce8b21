"""`python -m benchmarks.kill_promote`: kill -9 the promotion of models at random moments; there is always one champion.

A registry of its own gets candidate after candidate, each a little better than the one before. The stage
`promote@retrieval` runs on it in a process of its own, which is killed at a random moment. After each kill the registry
is read as a consumer reads it: the champion must be complete and have its scores, and be either the one from before or
the candidate. In the end an undisturbed promotion must complete what the killed ones began, and no candidate may be
registered twice; else the exit status is 1.
"""

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.measure import report, silence
from clip4vla.config import AudioConfig, ClipsConfig, InferenceConfig, ModelConfig, load_config
from clip4vla.evaluation.retrieval_metrics import QueryRanks
from clip4vla.evaluation.scores import BY_QUERY, QueryTable, Scores, summarise
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.pretrained import save_model
from clip4vla.model.towers import Architecture
from clip4vla.pipeline import promote as stage
from clip4vla.pipeline.project import EVALUATIONS, RUNS
from clip4vla.records import MODALITIES, TaskName
from clip4vla.registry.registry import Registry, content_hash
from clip4vla.tracking.run import start_run
from clip4vla.tracking.store import open_client
from clip4vla.training.spec import RUN_FILE
from clip4vla.utils.files import write_json

REPOSITORY = Path(__file__).parents[1]
TASK: TaskName = "retrieval"
ARCHITECTURE = Architecture(
    "tiny",
    {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    },
)
INFERENCE = InferenceConfig(clips=ClipsConfig(frames=1, size=32), frames=1, max_tokens=12)
QUERIES = 400
LONGEST = 1.3
"""The latest moment of a kill, in units of an undisturbed promotion: a loaded machine is slower at times."""
fork = multiprocessing.get_context("fork")
"""Slow modules are imported once, before the fork, and this process itself never opens the database."""


def alone(call: Callable[[], Any]) -> Any:
    """What `call` returns, computed in a process of its own.

    Raises:
        RuntimeError: it failed; its output has the reason.
    """
    with tempfile.TemporaryDirectory() as directory:
        answer = Path(directory) / "answer.json"
        process = fork.Process(target=lambda: answer.write_text(json.dumps(call())))
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"a process that was not killed ended with status {process.exitcode}")
        return json.loads(answer.read_text())


def make_candidate(root: Path, number: int) -> None:
    """Write the run result and the test scores of candidate `number` to where the stage reads them."""
    with start_run(root, TASK, f"candidate {number}") as run:
        pass
    result = root / RUNS / TASK
    shutil.rmtree(result, ignore_errors=True)
    torch.manual_seed(number)
    save_model(Clip4Vla(ModelConfig(architecture="tiny"), AudioConfig(), ARCHITECTURE), result, INFERENCE)
    write_json(result / RUN_FILE, {"run_id": run.run_id})
    make_scores(number).write(root / EVALUATIONS / TASK)


def make_scores(number: int) -> Scores:
    """Scores that are better the greater `number` is, all on the same queries."""
    rank = np.where(np.arange(QUERIES) < QUERIES * (1 - 0.3 * 0.97**number), 1.0, 20.0)
    hits = np.stack([rank <= k for k in (1, 5, 10)], axis=1).astype(np.float64)
    names = tuple(f"query{index}" for index in range(QUERIES))
    table = QueryTable(names, names, QueryRanks(rank, hits))
    by_query = {f"{BY_QUERY}/all/{modality}": table for modality in MODALITIES}
    return summarise("of-this-benchmark", {"text_to_clip/both": table} | by_query, 100, 0)


def promote() -> None:
    """The stage, in the working directory."""
    stage.promote(TASK)


def look(root: Path, name: str) -> dict[str, Any]:
    """The champion as a consumer finds it, its model downloaded and compared with what was registered.

    `arrived`: whether it is the candidate that is being promoted.
    """
    registry = Registry(root)
    version = registry.find_champion(name)
    if version is None:
        return {"champion": None, "versions": 0, "arrived": False}
    registry.scores(name, version)  # they can be read
    with tempfile.TemporaryDirectory() as folder:
        champion = registry.fetch(name, version, Path(folder))
        arrived = content_hash(champion) == content_hash(root / RUNS / TASK)
    client = open_client(root)
    assert str(client.get_model_version_by_alias(name, "champion").version) == version
    versions = client.search_model_versions(f"name = '{name}'")
    contents = Counter(found.tags.get("content") for found in versions)
    twice = [content for content, count in contents.items() if count > 1]
    return {"champion": version, "versions": len(versions), "twice": twice, "arrived": arrived}


def kill_once(seconds: float, rng: random.Random) -> float | None:
    """Promote, and kill the promotion within `seconds`: after how many, or None where it ended first."""
    process = fork.Process(target=promote)
    started = time.monotonic()
    process.start()
    process.join(rng.uniform(0, seconds))
    process.kill()
    after = time.monotonic() - started
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"a promotion failed with status {process.exitcode}; its output has the reason")
    return after if process.exitcode else None


def kill_often(root: Path, name: str, kills: int, rng: random.Random) -> dict[str, Any]:
    """Promote two models undisturbed, then kill `kills` promotions, and read the registry after each.

    A candidate is promoted until it is the champion, so that kills hit every part of a promotion; then the next
    candidate is made.
    """
    alone(lambda: make_candidate(root, 0))
    alone(promote)  # makes the database too
    number, wrong, moments = 1, list[str](), list[float]()
    alone(lambda: make_candidate(root, number))
    started = time.monotonic()
    alone(promote)
    seconds = time.monotonic() - started
    before = alone(lambda: look(root, name))
    while len(moments) < kills:
        if before["arrived"]:
            number += 1
            alone(lambda: make_candidate(root, number))  # noqa: B023
        after = kill_once(LONGEST * seconds, rng)
        now = alone(lambda: look(root, name))
        wrong += _mistakes(before, now)
        before = now
        if after is not None:
            moments.append(after)
            print(f"kill {len(moments)}/{kills} after {after:.2f} s: {now}", file=sys.stderr, flush=True)
    alone(promote)
    last = alone(lambda: look(root, name))
    if last["champion"] != str(last["versions"]):
        wrong.append(f"in the end version {last['champion']} is the champion of {last['versions']}")
    return {"promotion_s": seconds, "candidates": number + 1, "last": last, "wrong": wrong, "moments": moments}


def _mistakes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What is wrong after a kill: the champion must be the one before or the newest version, and no model twice."""
    found = []
    if now["champion"] not in (before["champion"], str(now["versions"])):
        found.append(f"after version {before['champion']}, the champion is {now['champion']}")
    return found + [f"the model {content} is there twice" for content in now.get("twice", [])]


def main(arguments: Sequence[str] | None = None) -> None:
    """Kill, look, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.kill_promote", description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    settings = parser.parse_args(arguments)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as directory, silence():
        root = Path(directory).resolve()
        shutil.copy(REPOSITORY / "params.yaml", root)
        os.chdir(root)
        import clip4vla.inference.pyfunc  # noqa: F401  # MLflow, and what a version is loaded with

        name = load_config().gates.of(TASK).model_name
        results = kill_often(root, name, settings.kills, random.Random(settings.seed))
        os.chdir(REPOSITORY)
    results |= {"kills": len(results["moments"]), "total_s": time.monotonic() - started}
    report("kill_promote", torch.device("cpu"), settings, results, packages=("mlflow",))
    if results["wrong"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
