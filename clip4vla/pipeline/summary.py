"""What the stages left, for people: a headline score and a report in Markdown of each, and links to MLflow.

In: the files of the project. Out: text. Flows show it in Prefect, `clip4vla summary` on a terminal.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from clip4vla.config import load_config
from clip4vla.corpora.manifest import MANIFEST_FILE
from clip4vla.evaluation.scores import Scores
from clip4vla.pipeline.ablate import read_trials
from clip4vla.pipeline.project import EVALUATIONS, MANIFESTS, ROOT, RUNS, clips_directory
from clip4vla.pipeline.promote import decision_file
from clip4vla.records import RUN_FILE, TASKS, TaskName
from clip4vla.reports.retrieval_report import query_tables, unseen_tables
from clip4vla.reports.tables import Table, comparison_table, score_cell, to_markdown, value_table
from clip4vla.tracking.run import HEADLINES
from clip4vla.tracking.store import comparison_page, run_page, runs_table_page, version_page
from clip4vla.training.spec import read_run
from clip4vla.utils.files import read_json
from clip4vla.utils.numbers import format_count, format_rate

HEADLINE_SCORE = {
    "pretraining": "text_to_clip/both/R@1",
    "retrieval": "text_to_clip/both/R@1",
    "captioning": "caption/both/CIDEr",
}
COLUMNS = (
    "params.objective",
    "params.fusion",
    "params.audio_token",
    "params.epochs",
    "params.seed",
    "tags.git_revision",
)
"""Columns of the runs table beside the headline metrics."""


@dataclass(frozen=True)
class StageSummary:
    """What a stage left."""

    headline: str
    """The score to look at first, or a count; empty where there is none."""
    report: str
    """Markdown; empty where there is nothing to say."""


def summarise_stage(stage: str) -> StageSummary:
    """What `stage` (such as `finetune@retrieval`) left.

    Raises:
        ValueError: a file that it should have left is missing or damaged.
    """
    step, _, name = stage.partition("@")
    if step == "manifest":
        return _manifest(name)
    if step == "clips":
        return _clips(name)
    if step == "pretrain":
        return StageSummary(_speed("pretraining"), training_report("pretraining"))
    if step == "finetune":
        return StageSummary(_speed(name), _finetuning_report(name))
    if step == "ablate":
        return _ablation()
    if step == "evaluate":
        return _evaluation(name)
    if step == "promote":
        return _promotion("retrieval" if name == "retrieval" else "captioning")
    return StageSummary("", "")


def rejected_clips() -> list[dict[str, str | int]]:
    """Rejected clips by corpus, stage and reason."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for path in sorted(Path("data").glob("*/**/rejects.parquet")):
        for reason in pq.read_table(path, columns=["reason"]).column("reason").to_pylist():
            counts[path.parent.name, path.parts[1], reason] += 1
    return [{"corpus": c, "stage": s, "reason": r, "clips": n} for (c, s, r), n in sorted(counts.items())]


def comparison_links() -> dict[TaskName, str]:
    """`comparison_link` of every task that has been trained."""
    return {task: comparison_link(task) for task in TASKS if (RUNS / task / RUN_FILE).is_file()}


def comparison_link(task: TaskName) -> str:
    """Address of MLflow's page that compares candidate and champion, or shows the runs where they are the same one."""
    from clip4vla.registry.registry import Registry

    run_id = read_run(RUNS / task)["run_id"]
    champion_run = Registry(ROOT).champion_run(load_config().gates.of(task).model_name)
    if champion_run not in (None, run_id):
        return comparison_page(ROOT, [run_id, str(champion_run)])
    metrics = [f"metrics.{name}" for name in HEADLINES.values() if (name == "CIDEr") == (task == "captioning")]
    return runs_table_page(ROOT, task, [*metrics, *COLUMNS])


def project_summary() -> Table:
    """A row per evaluated model: its headline score, the decision about it, and its MLflow run."""
    rows = []
    for name in HEADLINE_SCORE:
        if not (EVALUATIONS / name).is_dir():
            continue
        decision = next((read_decision(task) for task in TASKS if task == name), None)
        verdict = "" if decision is None else f"version {decision['version']} {_verdict(decision)}"
        rows.append([name, _evaluation(name).headline, verdict, run_page(ROOT, read_run(RUNS / name)["run_id"])])
    return Table("Models", ["model", "headline", "decision", "MLflow run"], rows)


def read_decision(task: TaskName) -> dict[str, Any] | None:
    """The decision about a task's model: `model`, `version`, `promote`, `reasons`; None before there is one.

    Raises:
        ValueError: the file is damaged.
    """
    path = decision_file(task)
    if not path.is_file():
        return None
    decision = read_json(path)
    if not isinstance(decision, dict) or not decision.keys() >= {"model", "version", "promote", "reasons"}:
        raise ValueError(f"{path} holds no decision: `dvc repro promote@{task}` makes one")
    return decision


def training_report(name: str) -> str:
    """Markdown about a training: its last losses, its speed, and a link to its MLflow run."""
    trained = read_run(RUNS / name)
    return f"# {name}\n\n{to_markdown(value_table('last', trained['metrics']))}\n\n{_run_link(trained['run_id'])}"


def _finetuning_report(task: str) -> str:
    validation = to_markdown(comparison_table({task: Scores.read(RUNS / task)}))
    return f"{training_report(task)}\n\n## Validation\n\n{validation}"


def _speed(name: str) -> str:
    return f"{format_rate(read_run(RUNS / name)['metrics']['clips_per_second'])} clips/s"


def _manifest(name: str) -> StageSummary:
    count = pq.read_metadata(MANIFESTS / name / MANIFEST_FILE).num_rows
    return StageSummary(f"{format_count(count)} records", "")


def _clips(name: str) -> StageSummary:
    from clip4vla.clips.dataset import ClipDataset

    count = len(ClipDataset(sorted(clips_directory(load_config(), name).glob("*.lance"))))
    return StageSummary(f"{format_count(count)} clips", "")


def _ablation() -> StageSummary:
    trials = read_trials(load_config())
    score = HEADLINE_SCORE["retrieval"]
    best = max(trials, key=lambda arm: trials[arm].values[score])
    headline = f"best arm {best}: R@1 {score_cell(trials[best], score)}"
    return StageSummary(headline, f"# Fusion and audio tokens\n\n{to_markdown(comparison_table(trials))}")


def _evaluation(name: str) -> StageSummary:
    scores, score = Scores.read(EVALUATIONS / name), HEADLINE_SCORE[name]
    tables = "\n\n".join(
        map(to_markdown, [comparison_table({name: scores}), *query_tables(scores), *unseen_tables(scores)])
    )
    headline = f"{score.rpartition('/')[2]} {score_cell(scores, score)}"
    return StageSummary(headline, f"# Test scores\n\n{tables}\n\n{_run_link(read_run(RUNS / name)['run_id'])}")


def _promotion(task: TaskName) -> StageSummary:
    decision = read_decision(task)
    if decision is None:
        raise ValueError(f"{decision_file(task)} is missing")
    title = f"{decision['model']} version {decision['version']}"
    reasons = "\n".join(f"- {reason}" for reason in decision["reasons"])
    page = version_page(ROOT, decision["model"], decision["version"])
    report = f"# {title}: {_verdict(decision)}\n\n{reasons}\n\n[{title} in MLflow]({page})"
    return StageSummary(f"version {decision['version']} {_verdict(decision)}", report)


def _verdict(decision: dict[str, Any]) -> str:
    return "promoted" if decision["promote"] else "not promoted"


def _run_link(run_id: str) -> str:
    return f"[MLflow run {run_id[:8]}]({run_page(ROOT, run_id)})"
