"""Stage and flow `pretrain`: contrastive pretraining on the pretraining corpora.

Out: `runs/pretrain` with the model and `run.json`; the stage `evaluate` scores it.
"""

from prefect import flow

from clip4vla.params import load_params
from flows import ablate, evaluate, finetune, promote
from flows.stage import Stage
from flows.training import make_job, report_run, run_job


def train() -> None:
    """Pretrain; each sample's audio token is the kind of its text."""
    params = load_params()
    run_job(make_job(params, "pretrain", "pretrain", params.pretrain, "sample", None), "pretrain", "pretrain")


STAGE = Stage("pretrain", (train,), lambda: report_run("pretrain"))


ONWARDS = (
    *finetune.STAGES.values(),
    ablate.STAGE,
    *evaluate.STAGES.values(),
    *promote.STAGES.values(),
)
"""What follows in the graph, up to a judged candidate of each task."""


@flow(name="pretrain", log_prints=True)
def pretrain(through_dvc: bool = False, force: bool = False, onwards: bool = False) -> None:
    """Pretrain from the corpora in data/clips/pretrain.

    Args:
        through_dvc: keeps dvc.lock true.
        force: pretrains even if nothing changed.
        onwards: goes on with everything that follows, so that the night ends with a judged candidate.
    """
    STAGE.run(through_dvc, force, ONWARDS if onwards else ())


if __name__ == "__main__":
    STAGE.main(pretrain)
