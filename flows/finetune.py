"""Stage and flow `finetune`: retrieval fine-tuning from the pretrained weights, judged on the validation clips.

Out: `runs/finetune` with the model, `run.json`, and its validation scores.
"""

from prefect import flow

from clip4vla.evaluation.scores import Scores
from clip4vla.params import load_params
from clip4vla.training.job import read_run
from flows.stage import Stage
from flows.training import RUNS, find_clips, judge, log_scores, make_job, report_run, run_job, score_table

OUT = RUNS / "finetune"


def train() -> None:
    """Fine-tune the pretrained model, if there are clips to judge it on."""
    params = load_params()
    for split in ("val", "test"):
        find_clips(params, "finetune", split)
    token = params.model.audio_token
    run_job(make_job(params, "finetune", "finetune", params.finetune, token, RUNS / "pretrain"), "finetune", "finetune")


def judge_on_val() -> None:
    """Score the fine-tuned model on the validation clips."""
    params = load_params()
    _, scores = judge(params, OUT, "val", params.finetune, params.model.audio_token)
    scores.write(OUT)
    log_scores(scores, read_run(OUT)["run_id"], "val", "finetune")


def report() -> str:
    """Markdown: losses, speed and validation scores."""
    return f"{report_run('finetune')}\n\n## Validation\n\n{score_table({'finetune': Scores.read(OUT)})}"


STAGE = Stage("finetune", (train, judge_on_val), report)


@flow(name="finetune", log_prints=True)
def finetune(through_dvc: bool = False, force: bool = False) -> None:
    """Fine-tune for retrieval; `through_dvc` keeps dvc.lock true, `force` reruns."""
    STAGE.run(through_dvc, force)


if __name__ == "__main__":
    STAGE.main(finetune)
