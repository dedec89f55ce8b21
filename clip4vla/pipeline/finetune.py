"""Stages `finetune@TASK`: fine-tuning from the pretrained weights, scored on the validation clips.

Out: `runs/TASK`: the model, `run.json`, and its validation scores.
"""

from clip4vla.config import load_config
from clip4vla.pipeline import pretrain
from clip4vla.pipeline.evaluate import log_scores, read_labels, read_queries, score
from clip4vla.pipeline.project import RUNS, find_clips
from clip4vla.pipeline.training import after_result, forget_results, make_spec, run_name, run_training
from clip4vla.records import TaskName
from clip4vla.training.spec import read_run


def finetune(task: TaskName) -> None:
    """Fine-tune the pretrained model for `task` and score it on the validation clips.

    Raises:
        ValueError: there are no clips to validate or to test on, or labels or queries can't be read; nothing has been
            trained then.
    """
    config = load_config()
    for split in ("val", "test"):
        find_clips(config, "finetuning", split)
        read_queries(config, split)
    read_labels(config)
    spec = make_spec(config, task, task, config.task(task), config.model.audio_token, RUNS / pretrain.NAME)
    run_training(spec, task, run_name(config, task))
    scores = score(config, task, spec.out, "val")
    scores.write(spec.out)
    with after_result("the validation scores are not in MLflow"):
        log_scores(config, scores, read_run(spec.out)["run_id"], "val")
    forget_results(task)
