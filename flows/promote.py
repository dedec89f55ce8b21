"""Stages and flow `promote`: register a task's model, let its gate decide, move the alias `champion` or not.

Out: `metrics/promotion.json` for retrieval, `metrics/promotion-caption.json` for captioning.
"""

import json
import tempfile
from dataclasses import asdict
from functools import partial
from pathlib import Path

from prefect import flow

from clip4vla.atomic import write_json
from clip4vla.evaluation.scores import Scores
from clip4vla.params import Params, load_params
from clip4vla.registry.gate import decide
from clip4vla.registry.store import Registry
from clip4vla.tracking import version_page
from clip4vla.training.job import read_run
from flows.stage import Stage
from flows.tasks import TASKS, Task, TaskName, name_on_command_line
from flows.training import METRICS, ROOT, RUNS


def register_and_decide(task: Task) -> None:
    """Register the candidate with its test scores, compare it with the champion, carry out the decision."""
    params = load_params()
    gate, registry = task.gate(params), Registry(ROOT)
    result, candidate = RUNS / task.run, Scores.read(RUNS / "evaluate" / task.run)
    run_id = read_run(result)["run_id"]
    version = registry.register(
        run_id, result, candidate, gate.model_name, params.clips, task.training(params), params.evaluate.search
    )
    champion = registry.champion(gate.model_name)
    scores = None if champion is None else champion[1]
    if champion is not None and champion[1].test_set != candidate.test_set:
        scores = _judge_anew(task, params, registry, champion[0])
    decision = decide(candidate, scores, gate, params.evaluate.bootstrap, params.evaluate.seed)
    decision = registry.promote(gate.model_name, version, decision, champion and champion[0])
    write_json(_out(task), {"model": gate.model_name, "version": version, **asdict(decision)})
    print(f"{gate.model_name} version {version}: {'promoted' if decision.promote else 'not promoted'}")
    for reason in decision.reasons:
        print(f"  {reason}")


def _judge_anew(task: Task, params: Params, registry: Registry, version: str) -> Scores:
    """The champion's scores on the test clips of today: those it has are of another test set."""
    with tempfile.TemporaryDirectory() as scratch:
        result = registry.fetch(task.gate(params).model_name, version, Path(scratch))
        return task.judge(params, result, "test", read_run(result)["audio_token"])


def _out(task: Task) -> Path:
    return METRICS / f"{task.decision}.json"


def report(task: Task) -> str:
    """Markdown: the decision and why."""
    decision = json.loads(_out(task).read_text(encoding="utf-8"))
    verdict = "promoted" if decision["promote"] else "not promoted"
    reasons = "\n".join(f"- {reason}" for reason in decision["reasons"])
    page = version_page(ROOT, decision["model"], decision["version"])
    title = f"{decision['model']} version {decision['version']}"
    return f"# {title}: {verdict}\n\n{reasons}\n\n[{title} in MLflow]({page})"


STAGES = {
    name: Stage(f"promote@{name}", (partial(register_and_decide, task),), partial(report, task))
    for name, task in TASKS.items()
}


@flow(name="promote", log_prints=True)
def promote(task: TaskName = "retrieval", through_dvc: bool = False, force: bool = False) -> None:
    """Judge a candidate against the champion; `through_dvc` keeps dvc.lock true, `force` judges again."""
    STAGES[task].run(through_dvc, force)


if __name__ == "__main__":
    name = name_on_command_line(STAGES)
    STAGES[name].main(partial(promote, name))
