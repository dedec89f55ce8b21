"""Stages and flow `finetune`: fine-tuning for a task from the pretrained weights, judged on the validation clips.

Out: `runs/finetune` for retrieval, `runs/caption` for captioning: the model, `run.json`, and its validation scores.
"""

from functools import partial

from prefect import flow

from clip4vla.evaluation.scores import Scores
from clip4vla.params import load_params
from clip4vla.training.job import read_run
from flows.stage import Stage
from flows.tasks import TASKS, Task, TaskName, name_on_command_line
from flows.training import RUNS, find_clips, log_scores, make_job, report_run, run_job


def train(task: Task) -> None:
    """Fine-tune the pretrained model, if there are clips to judge it on."""
    params = load_params()
    for split in ("val", "test"):
        find_clips(params, "finetune", split)
    job = make_job(params, task.run, task.run, task.training(params), params.model.audio_token, RUNS / "pretrain")
    run_job(job, task.run, task.run)


def judge_on_val(task: Task) -> None:
    """Score the fine-tuned model on the validation clips."""
    params = load_params()
    out = RUNS / task.run
    scores = task.judge(params, out, "val", params.model.audio_token)
    scores.write(out)
    log_scores(scores, read_run(out)["run_id"], "val", task.run)


def report(task: Task) -> str:
    """Markdown: losses, speed and validation scores."""
    return f"{report_run(task.run)}\n\n## Validation\n\n{task.table({task.run: Scores.read(RUNS / task.run)})}"


STAGES = {
    name: Stage(f"finetune@{name}", (partial(train, task), partial(judge_on_val, task)), partial(report, task))
    for name, task in TASKS.items()
}


@flow(name="finetune", log_prints=True)
def finetune(task: TaskName = "retrieval", through_dvc: bool = False, force: bool = False) -> None:
    """Fine-tune for a task; `through_dvc` keeps dvc.lock true, `force` reruns."""
    STAGES[task].run(through_dvc, force)


if __name__ == "__main__":
    name = name_on_command_line(STAGES)
    STAGES[name].main(partial(finetune, name))
