"""Stage `ablate`: the effect of the audio token. One short fine-tuning per token, scored alike.

Out: `runs/ablation/TOKEN` per trial, `table.csv` and `ablation.png`, and `metrics/ablation.json`; in MLflow a parent
run with a child per trial.
"""

import csv
from pathlib import Path

from clip4vla.config import AudioToken, Config, load_config
from clip4vla.evaluation.scores import Scores
from clip4vla.pipeline import pretrain
from clip4vla.pipeline.evaluate import log_scores, score_retrieval
from clip4vla.pipeline.project import METRICS, ROOT, RUNS
from clip4vla.pipeline.training import make_spec, run_name, run_training
from clip4vla.records import MODALITIES
from clip4vla.reports.figures import ablation_figure, save_figure
from clip4vla.tracking.run import start_run
from clip4vla.training.spec import read_run
from clip4vla.utils.files import atomic_file, write_json

NAME = "ablation"
OUT = RUNS / NAME


def ablate() -> None:
    """Fine-tune and score with each audio token; a finished trial of a killed sweep is not trained again."""
    config = load_config()
    with start_run(ROOT, NAME, run_name(config, NAME)) as parent:
        tokens = config.ablation.audio_tokens
        parent.log_params({"epochs": config.ablation.epochs, "seed": config.seed, "trials": len(tokens)})
        for token in tokens:
            _run_trial(config, token, parent.run_id)
        trials = read_trials(config)
        _write_table(trials, OUT / "table.csv")
        write_json(METRICS / f"{NAME}.json", {token: scores.tree() for token, scores in trials.items()})
        _, before = score_retrieval(config, RUNS / pretrain.NAME, "test")
        figure = ablation_figure(trials, probe=before)
        save_figure(figure, OUT / "ablation.png")
        parent.log_figure(figure, NAME)
        parent.log_artifact(OUT / "table.csv")


def _run_trial(config: Config, token: AudioToken, parent: str | None) -> None:
    training = config.retrieval.model_copy(update={"epochs": config.ablation.epochs})
    of_trial = config.model_copy(update={"model": config.model.model_copy(update={"audio_token": token})})
    spec = make_spec(of_trial, "retrieval", f"{NAME}/{token}", training, token, RUNS / pretrain.NAME)
    run_training(spec, NAME, run_name(config, f"token {token}"), parent)
    _, scores = score_retrieval(config, spec.out, "test")
    scores.write(spec.out)
    log_scores(config, scores, read_run(spec.out)["run_id"], "test")


def read_trials(config: Config) -> dict[str, Scores]:
    """The scores of every trial by its token."""
    return {str(token): Scores.read(OUT / str(token)) for token in config.ablation.audio_tokens}


def _write_table(trials: dict[str, Scores], path: Path) -> None:
    """A row per trial and modality: text→clip R@1, R@5, R@10 with the 95 % interval of R@1."""
    with atomic_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["audio_token", "modality", "R@1", "R@1_low", "R@1_high", "R@5", "R@10"])
        for token, scores in trials.items():
            for modality in MODALITIES:
                name = f"text_to_clip/{modality}"
                recalls = [scores.values[f"{name}/R@{k}"] for k in (1, 5, 10)]
                writer.writerow([token, modality, recalls[0], *scores.intervals[f"{name}/R@1"], *recalls[1:]])
