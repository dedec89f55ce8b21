"""Stage and flow `ablate`: what the audio token is worth. One short fine-tuning per token, tested alike.

Out: `runs/ablate/TOKEN` per trial, `table.csv` and `ablation.png`, and `metrics/ablation.json`; in MLflow a parent
run with a child per trial.
"""

import csv
from pathlib import Path

from prefect import flow

from clip4vla.atomic import atomic_file, write_json
from clip4vla.evaluation.figures import ablation_figure, save
from clip4vla.evaluation.scores import Scores
from clip4vla.params import AudioToken, Params, load_params
from clip4vla.records import MODALITIES
from clip4vla.tracking import open_tracker
from clip4vla.training.job import read_run
from flows.stage import Stage
from flows.training import METRICS, ROOT, RUNS, judge, log_scores, make_job, run_job, score_table

OUT = RUNS / "ablate"
EXPERIMENT = "ablation"


def sweep() -> None:
    """Fine-tune and test with each audio token; a trial that a killed sweep finished isn't trained again."""
    params = load_params()
    with open_tracker(ROOT).start(EXPERIMENT, "sweep", {}) as parent:
        parent.params({"epochs": params.ablate.epochs, "seed": params.seed, "trials": len(params.ablate.audio_tokens)})
        for token in params.ablate.audio_tokens:
            _trial(params, token, parent.run_id)
        trials = _read_trials(params)
        _write_table(trials, OUT / "table.csv")
        write_json(METRICS / "ablation.json", {token: scores.tree() for token, scores in trials.items()})
        _, before = judge(params, RUNS / "pretrain", "test", params.pretrain, params.model.audio_token)
        figure = ablation_figure(trials, probe=before)
        save(figure, OUT / "ablation.png")
        parent.figure(figure, "ablation")
        parent.artifact(OUT / "table.csv")


def _trial(params: Params, token: AudioToken, parent: str | None) -> None:
    training = params.finetune.model_copy(update={"epochs": params.ablate.epochs})
    job = make_job(params, "finetune", f"ablate/{token}", training, token, RUNS / "pretrain")
    run_job(job, EXPERIMENT, f"token {token}", parent)
    _, scores = judge(params, job.out, "test", training, token)
    scores.write(job.out)
    log_scores(scores, read_run(job.out)["run_id"], "test", EXPERIMENT)


def _read_trials(params: Params) -> dict[str, Scores]:
    return {str(token): Scores.read(OUT / str(token)) for token in params.ablate.audio_tokens}


def _write_table(trials: dict[str, Scores], path: Path) -> None:
    """A row per trial and modality: text→clip R@1, R@5, R@10 with the 95 % interval of R@1."""
    with atomic_file(path) as partial, partial.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["audio_token", "modality", "R@1", "R@1_low", "R@1_high", "R@5", "R@10"])
        for token, scores in trials.items():
            for modality in MODALITIES:
                name = f"text_to_clip/{modality}"
                recalls = [scores.values[f"{name}/R@{k}"] for k in (1, 5, 10)]
                writer.writerow([token, modality, recalls[0], *scores.intervals[f"{name}/R@1"], *recalls[1:]])


def report() -> str:
    """Markdown: the scores of every trial."""
    return f"# Audio token\n\n{score_table(_read_trials(load_params()))}"


STAGE = Stage("ablate", (sweep,), report)


@flow(name="ablate", log_prints=True)
def ablate(through_dvc: bool = False, force: bool = False) -> None:
    """Sweep the audio tokens; `through_dvc` keeps dvc.lock true, `force` reruns."""
    STAGE.run(through_dvc, force)


if __name__ == "__main__":
    STAGE.main(ablate)
