"""Stages `promote@TASK`: register a task's model, let its gate decide, move the alias `champion` or not.

Out: `metrics/promotion-TASK.json`: `model`, `version`, `promote`, `reasons`.
"""

import tempfile
from dataclasses import asdict
from pathlib import Path

from clip4vla.config import Config, load_config
from clip4vla.evaluation.scores import Scores
from clip4vla.pipeline.evaluate import score
from clip4vla.pipeline.project import EVALUATIONS, METRICS, ROOT, RUNS
from clip4vla.records import TaskName
from clip4vla.registry.gate import decide
from clip4vla.registry.registry import Registry
from clip4vla.training.spec import read_run
from clip4vla.utils.files import write_json


def promote(task: TaskName) -> None:
    """Register the candidate with its test scores, compare it with the champion, carry out the decision."""
    config = load_config()
    gate, registry = config.gates.of(task), Registry(ROOT)
    directory, candidate = RUNS / task, Scores.read(EVALUATIONS / task)
    beam_search = config.evaluation.beam_search
    version = registry.register(read_run(directory)["run_id"], directory, candidate, gate.model_name, beam_search)
    champion = registry.champion(gate.model_name)
    scores = None if champion is None else champion[1]
    if champion is not None and champion[1].test_set != candidate.test_set:
        scores = _score_champion(config, task, registry, champion[0])
    decision = decide(candidate, scores, gate, config.evaluation.bootstrap, config.evaluation.seed)
    decision = registry.promote(gate.model_name, version, decision, champion and champion[0])
    write_json(decision_file(task), {"model": gate.model_name, "version": version, **asdict(decision)})
    print(f"{gate.model_name} version {version}: {'promoted' if decision.promote else 'not promoted'}")
    for reason in decision.reasons:
        print(f"  {reason}")


def decision_file(task: TaskName) -> Path:
    """Where the decision about a task's model is written."""
    return METRICS / f"promotion-{task}.json"


def _score_champion(config: Config, task: TaskName, registry: Registry, version: str) -> Scores:
    """The champion's scores on today's test clips: those recorded are of another test set."""
    with tempfile.TemporaryDirectory() as scratch:
        directory = registry.fetch(config.gates.of(task).model_name, version, Path(scratch))
        return score(config, task, directory, "test")
