"""Stages `promote@TASK`: register a task's model, let its gate decide, move the alias `champion` or not.

Out: `metrics/promotion-TASK.json`: `model`, `version`, `promote`, `reasons`.
"""

import logging
import tempfile
from dataclasses import asdict
from pathlib import Path

from clip4vla.config import Config, CorpusConfig, load_config
from clip4vla.corpora.stampscenes import compose, fetch
from clip4vla.evaluation.scores import Scores
from clip4vla.pipeline.project import EVALUATIONS, METRICS, ROOT, RUNS
from clip4vla.records import TaskName
from clip4vla.registry.gate import decide
from clip4vla.registry.registry import CorpusFacts, Registry
from clip4vla.training.spec import read_run
from clip4vla.utils.files import write_json

log = logging.getLogger(__name__)


def promote(task: TaskName) -> None:
    """Register the candidate with its test scores, compare it with the champion, carry out the decision."""
    config = load_config()
    gate, registry = config.gates.of(task), Registry(ROOT)
    directory, candidate = RUNS / task, Scores.read(EVALUATIONS / task)
    beam_search = config.evaluation.beam_search
    run_id, corpora = read_run(directory)["run_id"], describe_corpora(config)
    version = registry.register(
        run_id, directory, candidate, gate.model_name, beam_search, corpora, evaluation=EVALUATIONS / task
    )
    champion = registry.find_champion(gate.model_name)
    scores = None if champion is None else _champion_scores(config, task, registry, champion, candidate.test_set)
    decision = decide(candidate, scores, gate, config.evaluation.bootstrap, config.evaluation.seed)
    decision = registry.promote(gate.model_name, version, decision, champion)
    write_json(decision_file(task), {"model": gate.model_name, "version": version, **asdict(decision)})
    print(f"{gate.model_name} version {version}: {'promoted' if decision.promote else 'not promoted'}")
    for reason in decision.reasons:
        print(f"  {reason}")
    if decision.promote and gate.export_on_promotion is not None:
        from clip4vla.release.export import export_version

        exported = Path(gate.export_on_promotion) / f"{gate.model_name}-{version}"
        export_version(ROOT, gate.model_name, version, exported)
        print(f"exported to {exported}")


def describe_corpora(config: Config) -> dict[str, CorpusFacts]:
    """Role, version, licence and source of each corpus in params.yaml, for the registry and the model card."""
    return {
        name: {
            "role": corpus.role,
            "version": corpus.version or _package_version(corpus),
            "license": corpus.license,
            "source": corpus.source,
        }
        for name, corpus in config.corpora.items()
    }


def _package_version(corpus: CorpusConfig) -> str | None:
    """The version of the package that StampScenes was composed from; None for other corpora."""
    if not any(Path(corpus.media).is_relative_to(made) for made in (compose.DESTINATION, compose.UNSEEN_DESTINATION)):
        return None
    return fetch.fetched_version(fetch.STAMPS.destination)


def decision_file(task: TaskName) -> Path:
    """Where the decision about a task's model is written."""
    return METRICS / f"promotion-{task}.json"


def _champion_scores(config: Config, task: TaskName, registry: Registry, version: str, test_set: str) -> Scores:
    """The champion's scores on the test set: those recorded, or, where they are gone or of another, measured again."""
    name = config.gates.of(task).model_name
    try:
        recorded = registry.scores(name, version)
        if recorded.test_set == test_set:
            return recorded
    except ValueError as error:
        log.warning("%s: measured again", error)
    from clip4vla.pipeline.evaluate import score

    with tempfile.TemporaryDirectory() as scratch:
        scores = score(config, task, registry.fetch(name, version, Path(scratch)), "test")
    registry.replace_scores(name, version, scores)
    return scores
