"""Stage `ablate`: what fusion and audio tokens are worth. One short fine-tuning per arm, scored alike.

Out: `runs/ablation/ARM` per trial, `table.csv` and `ablation.png`, and `metrics/ablation.json`; in MLflow a parent
run with a child per trial.
"""

import csv
from itertools import product
from pathlib import Path

from clip4vla.config import EXPERT_TERMS, Config, load_config
from clip4vla.evaluation.scores import BY_QUERY, Scores
from clip4vla.pipeline import pretrain
from clip4vla.pipeline.evaluate import log_scores, read_labels, read_queries, score_retrieval
from clip4vla.pipeline.project import METRICS, ROOT, RUNS, find_clips
from clip4vla.pipeline.training import after_result, forget_results, make_spec, run_name, run_training
from clip4vla.records import MODALITIES
from clip4vla.reports.figures import ablation_figure, save_figure
from clip4vla.tracking.run import FIGURES, start_run
from clip4vla.training.spec import TrainSpec, read_run
from clip4vla.utils.files import atomic_file, write_json

NAME = "ablation"
OUT = RUNS / NAME


def ablate() -> None:
    """Fine-tune and score each arm; a finished trial of a sweep that failed or was killed is not trained again.

    Raises:
        ValueError: there are no clips to test on, or labels or queries can't be read; nothing has been trained then.
    """
    config = load_config()
    find_clips(config, "finetuning", "test")
    read_queries(config, "test")
    read_labels(config)
    with start_run(ROOT, NAME, run_name(config, NAME)) as parent:
        arms = config.ablation.arms
        parent.log_params({"epochs": config.ablation.epochs, "seed": config.seed, "trials": len(arms)})
        for name in arms:
            _run_trial(config, name, parent.run_id)
        trials = read_trials(config)
        _write_table(trials, OUT / "table.csv")
        write_json(METRICS / f"{NAME}.json", {arm: scores.tree() for arm, scores in trials.items()})
        _, before = score_retrieval(config, RUNS / pretrain.NAME, "test")
        save_figure(ablation_figure(trials, probe=before), OUT / "ablation.png")
        with after_result("figure and table of the ablation are not in MLflow"):
            parent.log_artifact(OUT / "ablation.png", FIGURES)
            parent.log_artifact(OUT / "table.csv")
    forget_results(NAME)


def spec_of_arm(config: Config, name: str, epochs: int) -> TrainSpec:
    """The fine-tuning of an arm: as `retrieval` describes it, but for what the arm changes and `epochs`."""
    arm = config.ablation.arms[name]
    changes: dict[str, float] = {"epochs": epochs}
    if arm.fusion != "experts":
        changes |= dict.fromkeys(EXPERT_TERMS, 0.0)
    training = config.retrieval.model_copy(update=changes)
    of_arm = config.model_copy(update={"model": config.model.model_copy(update=dict(arm))})
    return make_spec(of_arm, "retrieval", f"{NAME}/{name}", training, arm.audio_token, RUNS / pretrain.NAME)


def _run_trial(config: Config, name: str, parent: str | None) -> None:
    spec = spec_of_arm(config, name, config.ablation.epochs)
    run_training(spec, NAME, run_name(config, name), parent)
    _, scores = score_retrieval(config, spec.out, "test")
    scores.write(spec.out)
    with after_result(f"the scores of {name} are not in MLflow"):
        log_scores(config, scores, read_run(spec.out)["run_id"], "test")


def read_trials(config: Config) -> dict[str, Scores]:
    """The scores of every trial by its arm."""
    return {name: Scores.read(OUT / name) for name in config.ablation.arms}


def _write_table(trials: dict[str, Scores], path: Path) -> None:
    """A row per arm, kind of query and modality: R@1 with its 95 % interval."""
    with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["arm", "queries", "modality", "R@1", "R@1_low", "R@1_high"])
        for arm, scores in trials.items():
            groups = ["text_to_clip", *(f"{BY_QUERY}/{kind}" for kind in scores.query_kinds())]
            for group, modality in product(groups, MODALITIES):
                name = f"{group}/{modality}/R@1"
                queries = group.removeprefix(f"{BY_QUERY}/")
                writer.writerow([arm, queries, modality, scores.values[name], *scores.intervals[name]])
