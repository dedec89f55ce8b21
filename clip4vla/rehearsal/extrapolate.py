"""From the figures of a few clips to those of the corpora they stand for: arithmetic alone.

The cost of a stage is a fixed part and a part by clip. Of trainings the latter is the training's own clips a second; of
the clips and of the evaluations it is the difference between two runs with different numbers of clips.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from clip4vla.config import CaptioningConfig, Config, PretrainingConfig, RetrievalConfig, Role
from clip4vla.records import TASKS, Split
from clip4vla.rehearsal.measure import StageFigures
from clip4vla.training.spec import TrainingName

Counts = Mapping[Split, float]
GRAD_CACHE = 4 / 3
"""Cost of a clip with GradCache, whose second forward pass is as dear as the first, a third of forward and backward."""


@dataclass(frozen=True)
class Estimate:
    """What a stage would take."""

    stage: str
    fixed_s: float
    clip_s: float | None
    """Seconds of a clip; None where there are none to count, or where the difference of two runs says nothing."""
    clips: float | None
    """How often a clip is gone through; None where there are none to count, or the size of the corpus isn't known."""
    disk: float | None
    """Bytes of its outputs, likewise."""

    @property
    def seconds(self) -> float | None:
        """In all; None where the cost of a clip or their number isn't known."""
        if self.clip_s is None and self.clips is None:
            return self.fixed_s
        return None if self.clip_s is None or self.clips is None else self.fixed_s + self.clip_s * self.clips


@dataclass(frozen=True)
class Rehearsed:
    """What was measured, and what it stands for."""

    wanted: Config
    stages: Mapping[str, StageFigures]
    """Of the graph."""
    again: Mapping[str, StageFigures]
    """Of the stages that ran again, with more clips."""
    made: Mapping[str, Counts]
    """Clips by corpus when the graph ran."""
    made_again: Mapping[str, Counts]
    """Clips by corpus of the second run."""
    real: Mapping[str, Counts | None]
    """Clips by corpus that they stand for; None where that isn't known."""
    trained: Mapping[str, tuple[int, float]]
    """Clips that a training went through, and how many a second, by name; `ablation` for its arm."""
    ranks: int
    workers: int
    """Processes that will decode; here it was one."""

    def of_role(self, counts: Mapping[str, Counts | None], role: Role, split: Split) -> float | None:
        """Clips of all corpora of a role."""
        total = 0.0
        for name, corpus in self.wanted.corpora.items():
            if corpus.role == role:
                of_corpus = counts[name]
                if of_corpus is None:
                    return None
                total += of_corpus.get(split, 0)
        return total

    def slope_s(self, stage: str, clips: float) -> float | None:
        """Seconds that one clip more takes, by the two runs of `stage`, of which the second has `clips` more.

        None where there was no second run, or where it was not the longer one: other work disturbed one of them.
        """
        if stage not in self.again or clips <= 0:
            return None
        slope = (self.again[stage].seconds - self.stages[stage].seconds) / clips
        return slope if slope > 0 else None


def extrapolate(rehearsed: Rehearsed) -> list[Estimate]:
    """The estimate of every stage, in the order in which they ran."""
    special = {f"clips@{name}": _clips(rehearsed, name) for name in rehearsed.wanted.corpora}
    special |= {f"evaluate@{model}": _evaluation(rehearsed, model) for model in ("pretraining", *TASKS)}
    special |= {"pretrain": _training(rehearsed, "pretrain", "pretraining"), "ablate": _ablation(rehearsed)}
    special |= {f"finetune@{task}": _training(rehearsed, f"finetune@{task}", task) for task in TASKS}
    fixed = {
        name: Estimate(name, figures.seconds, None, None, figures.disk) for name, figures in rehearsed.stages.items()
    }
    return [special.get(name, estimate) for name, estimate in fixed.items()]


def _clips(rehearsed: Rehearsed, name: str) -> Estimate:
    """The clips of a corpus; those of StampScenes, a matter of minutes, are not scaled."""
    stage = f"clips@{name}"
    figures, made = rehearsed.stages[stage], sum(rehearsed.made[name].values())
    if stage not in rehearsed.again:
        return Estimate(stage, figures.seconds, None, None, figures.disk)
    more = sum(rehearsed.made_again[name].values()) - made
    clip_s, real = rehearsed.slope_s(stage, more), rehearsed.real[name]
    clips = None if real is None else sum(real.values())
    clip_bytes = (rehearsed.again[stage].disk - figures.disk) / more
    disk = None if clips is None else figures.disk + clip_bytes * (clips - made)
    fixed = max(0.0, figures.seconds - (clip_s or 0.0) * made)
    return Estimate(stage, fixed, None if clip_s is None else clip_s / rehearsed.workers, clips, disk)


def _test_clip_s(rehearsed: Rehearsed, model: str) -> float | None:
    """Seconds that a test clip more takes; the pretrained model is evaluated as that of retrieval is."""
    counts = rehearsed.made_again, rehearsed.made
    after, before = (rehearsed.of_role(each, "finetuning", "test") for each in counts)
    assert after is not None
    assert before is not None
    return rehearsed.slope_s(_rerun_evaluation(model), after - before)


def _rerun_evaluation(model: str) -> str:
    """The stage that says what evaluating a model costs."""
    return f"evaluate@{'retrieval' if model == 'pretraining' else model}"


def _evaluation(rehearsed: Rehearsed, model: str) -> Estimate:
    """The scores of a model; where all test clips are of StampScenes they are not scaled."""
    stage = f"evaluate@{model}"
    figures, clip_s = rehearsed.stages[stage], _test_clip_s(rehearsed, model)
    if _rerun_evaluation(model) not in rehearsed.again:
        return Estimate(stage, figures.seconds, None, None, figures.disk)
    fixed = figures.seconds - (clip_s or 0) * (rehearsed.of_role(rehearsed.made, "finetuning", "test") or 0)
    return Estimate(
        stage, max(0.0, fixed), clip_s, rehearsed.of_role(rehearsed.real, "finetuning", "test"), figures.disk
    )


def train_clip_s(rehearsed: Rehearsed, training: TrainingName, name: str) -> float:
    """Seconds of a clip in the training `name`, with GradCache where the batch takes several micro-batches."""
    section = training_section(rehearsed.wanted, training)
    share = -(-section.batch_size // rehearsed.ranks)
    # `auto` takes the share in one pass where that fits
    in_parts = section.micro_batch_size != "auto" and share > section.micro_batch_size
    return (GRAD_CACHE if in_parts else 1.0) / rehearsed.trained[name][1]


def training_section(config: Config, training: TrainingName) -> PretrainingConfig | RetrievalConfig | CaptioningConfig:
    """The section of params.yaml that describes a training."""
    return config.pretraining if training == "pretraining" else config.task(training)


def _training(rehearsed: Rehearsed, stage: str, training: TrainingName) -> Estimate:
    """A training, and where there are validation clips their scores, which are part of the fixed cost."""
    figures = rehearsed.stages[stage]
    clips, per_s = rehearsed.trained[training]
    role: Role = "pretraining" if training == "pretraining" else "finetuning"
    fixed = figures.seconds - clips / per_s
    if role == "finetuning" and (clip_s := _test_clip_s(rehearsed, training)) is not None:
        made, real = (rehearsed.of_role(counts, role, "val") for counts in (rehearsed.made, rehearsed.real))
        fixed += clip_s * ((real or 0) - (made or 0))
    real_clips = rehearsed.of_role(rehearsed.real, role, "train")
    epochs = training_section(rehearsed.wanted, training).epochs
    passes = None if real_clips is None else real_clips * epochs
    clip_s = train_clip_s(rehearsed, training, training)
    return Estimate(stage, max(0.0, fixed), clip_s, passes, figures.disk)


def _ablation(rehearsed: Rehearsed) -> Estimate:
    """Every arm, trained and scored, and the pretrained model scored once."""
    figures, config = rehearsed.stages["ablate"], rehearsed.wanted
    arms = len(config.ablation.arms)
    clips, per_s = rehearsed.trained["ablation"]
    test_s = _test_clip_s(rehearsed, "retrieval") or 0.0
    made, real = (rehearsed.of_role(counts, "finetuning", "test") for counts in (rehearsed.made, rehearsed.real))
    start = max(0.0, figures.seconds - clips / per_s - 2 * test_s * (made or 0))
    scoring = (arms + 1) * test_s * (real or 0)
    real_clips = rehearsed.of_role(rehearsed.real, "finetuning", "train")
    passes = None if real_clips is None else real_clips * config.ablation.epochs * arms
    clip_s = train_clip_s(rehearsed, "retrieval", "ablation")
    return Estimate("ablate", arms * start + scoring, clip_s, passes, arms * figures.disk)
