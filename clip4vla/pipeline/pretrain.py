"""Stage `pretrain`: contrastive pretraining on the pretraining corpora.

Out: `runs/pretraining` with the model and `run.json`; the stage `evaluate@pretraining` scores it.
"""

from clip4vla.config import load_config
from clip4vla.pipeline.training import forget_results, make_spec, run_name, run_training
from clip4vla.training.spec import TrainingName

NAME: TrainingName = "pretraining"


def pretrain() -> None:
    """Pretrain; the audio token of each sample is the kind of its text."""
    config = load_config()
    spec = make_spec(config, NAME, NAME, config.pretraining, "sample", None)
    run_training(spec, NAME, run_name(config, NAME))
    forget_results(NAME)
