"""Stage and flow `promote`: register the fine-tuned model, let the gate decide, move the alias `champion` or not.

Out: `metrics/promotion.json`.
"""

import json
import tempfile
from dataclasses import asdict
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
from flows.training import METRICS, ROOT, RUNS, judge

OUT = METRICS / "promotion.json"
CANDIDATE = RUNS / "finetune"


def register_and_decide() -> None:
    """Register the candidate with its test scores, compare it with the champion, carry out the decision."""
    params = load_params()
    registry = Registry(ROOT)
    candidate = Scores.read(RUNS / "evaluate" / "finetune")
    run_id = read_run(CANDIDATE)["run_id"]
    version = registry.register(run_id, CANDIDATE, candidate, params.gate.model_name, params.clips, params.finetune)
    champion = registry.champion(params.gate.model_name)
    scores = None if champion is None else champion[1]
    if champion is not None and champion[1].test_set != candidate.test_set:
        scores = _judge_anew(params, registry, champion[0])
    decision = decide(candidate, scores, params.gate, params.evaluate.bootstrap, params.evaluate.seed)
    decision = registry.promote(params.gate.model_name, version, decision, champion and champion[0])
    write_json(OUT, {"model": params.gate.model_name, "version": version, **asdict(decision)})
    print(f"{params.gate.model_name} version {version}: {'promoted' if decision.promote else 'not promoted'}")
    for reason in decision.reasons:
        print(f"  {reason}")


def _judge_anew(params: Params, registry: Registry, version: str) -> Scores:
    """The champion's scores on the test clips of today: those it has are of another test set."""
    with tempfile.TemporaryDirectory() as scratch:
        result = registry.fetch(params.gate.model_name, version, Path(scratch))
        return judge(params, result, "test", params.finetune, read_run(result)["audio_token"])[1]


def report() -> str:
    """Markdown: the decision and why."""
    decision = json.loads(OUT.read_text(encoding="utf-8"))
    verdict = "promoted" if decision["promote"] else "not promoted"
    reasons = "\n".join(f"- {reason}" for reason in decision["reasons"])
    page = version_page(ROOT, decision["model"], decision["version"])
    title = f"{decision['model']} version {decision['version']}"
    return f"# {title}: {verdict}\n\n{reasons}\n\n[{title} in MLflow]({page})"


STAGE = Stage("promote", (register_and_decide,), report)


@flow(name="promote", log_prints=True)
def promote(through_dvc: bool = False, force: bool = False) -> None:
    """Judge the candidate against the champion; `through_dvc` keeps dvc.lock true, `force` judges again."""
    STAGE.run(through_dvc, force)


if __name__ == "__main__":
    STAGE.main(promote)
