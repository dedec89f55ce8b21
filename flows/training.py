"""What the training flows share: a job from params.yaml, its MLflow run, and the judgement of its result."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip4vla.clips.loader import ClipStore
from clip4vla.evaluation.figures import loss_figure
from clip4vla.evaluation.probe import Labels
from clip4vla.evaluation.scores import Scores
from clip4vla.evaluation.suite import Gallery, Judge
from clip4vla.model.checkpoints import load_model
from clip4vla.params import (
    AudioToken,
    CaptionParams,
    FinetuneParams,
    Params,
    PretrainParams,
    TrainingParams,
    load_params,
)
from clip4vla.records import Split
from clip4vla.tracking import Run, open_tracker, run_page
from clip4vla.training.job import Corpus, Job, data_version, read_run
from clip4vla.training.launch import launch_through
from clip4vla.training.objective import Objective

ROOT = Path.cwd()
CLIPS = Path("data/clips")
RUNS = Path("runs")
CHECKPOINTS = Path("checkpoints")
METRICS = Path("metrics")
"""The few numbers of every stage that DVC compares, and that are committed with `dvc.lock`."""


def make_job(
    params: Params,
    task: str,
    name: str,
    training: PretrainParams | FinetuneParams | CaptionParams,
    audio_token: AudioToken,
    start_from: Path | None,
) -> Job:
    """The training `name` for `task`, on every corpus of its role, as params.yaml describes it."""
    paths = find_clips(params, "pretrain" if task == "pretrain" else "finetune", "train")
    corpora = tuple(Corpus(clips=path, weight=params.corpora[path.parent.name].weight) for path in paths)
    return Job(
        task=task,
        seed=params.seed,
        corpora=corpora,
        start_from=start_from,
        audio_token=audio_token,
        training=training,
        model=params.model,
        audio=params.audio,
        trainer=params.trainer,
        root=ROOT,
        checkpoints=CHECKPOINTS / name,
        out=RUNS / name,
        run_id=None,
    )


def find_clips(params: Params, role: str, split: Split) -> list[Path]:
    """The clips of `split` of every corpus of `role` in params.yaml.

    Raises:
        ValueError: there are none.
    """
    paths = [CLIPS / role / name / f"{split}.lance" for name, c in params.corpora.items() if c.role == role]
    found = [path for path in paths if path.is_dir()]
    if not found:
        raise ValueError(
            f"no corpus of the role {role} has {split} clips: run `dvc repro clips`, or give some clips that split in "
            "the annotations"
        )
    return found


def run_job(job: Job, experiment: str, run_name: str, parent: str | None = None) -> str | None:
    """Train, under an MLflow run that a training resumed from a checkpoint goes on with; the run's id.

    A training whose rank dies is resumed here; the flow fails when that doesn't help.
    """
    note = job.checkpoints / job.fingerprint() / "mlflow_run"
    run_id = note.read_text() if note.is_file() else None
    with open_tracker(job.root).start(experiment, run_name, {}, parent, run_id) as run:
        if run.run_id is not None:
            note.parent.mkdir(parents=True, exist_ok=True)
            note.write_text(run.run_id)
        run.params(headline_params(job))
        log_datasets(run, [corpus.clips for corpus in job.corpora], "train")
        launch_through(job.model_copy(update={"run_id": run.run_id}))
        if terms := run.history("loss/"):
            run.figure(loss_figure({name.removeprefix("loss/"): points for name, points in terms.items()}), "loss")
    return run.run_id


def log_datasets(run: Run, clips: Sequence[Path], context: str) -> None:
    """Say on the run which versions of which clips it saw, as data sets and, to compare by, in one tag."""
    versions = {path.parent.name: data_version(path) for path in clips}
    for path in clips:
        run.dataset(path.parent.name, versions[path.parent.name], path, context)
    run.tags({f"{context}_clips": ", ".join(f"{name}@{digest[:8]}" for name, digest in versions.items())})


def headline_params(job: Job) -> dict[str, Any]:
    """The settings that one compares runs by: flat and few."""
    training, optimizer = job.training, job.training.optimizer
    return {
        "architecture": job.model.architecture,
        "weights": job.model.weights or "scratch",
        "objective": objective_in_words(training, job.audio_token),
        "fusion": job.model.fusion,
        "audio_token": job.audio_token,
        "audio_recipe": job.audio.recipe,
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "frames": training.frames,
        "tiles": job.audio.tiles,
        "lr": optimizer.lr,
        "text_lr_ratio": optimizer.text_lr_ratio,
        "vision_lr_ratio": optimizer.vision_lr_ratio,
        "weight_decay": optimizer.weight_decay,
        "seed": job.seed,
    }


def objective_in_words(training: PretrainParams | FinetuneParams | CaptionParams, token: AudioToken) -> str:
    """The terms of a training, a weight of 1 unsaid: `text_audio + 2 video_audio`."""
    if isinstance(training, CaptionParams):
        return f"caption from {training.modalities}"
    weights = Objective.of(training, token).weights
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items())


def judge(
    params: Params, run_directory: Path, split: Split, training: TrainingParams, token: AudioToken
) -> tuple[Gallery, Scores]:
    """Score the run result on a split of the fine-tuning corpora: retrieval and, where there are labels, the probe."""
    judge = Judge(load_model(run_directory), training, params.evaluate)
    store = ClipStore(find_clips(params, "finetune", split))
    labels = params.evaluate.labels
    probe = judge.probe(store, Labels.read(Path(labels))) if labels else None
    gallery = judge.gallery(store, token)
    if params.evaluate.rerank and judge.model.scorer is not None:
        gallery = judge.rerank(gallery, store, token)
    return gallery, judge.score(gallery, probe)


def log_scores(scores: Scores, run_id: str | None, split: Split, experiment: str) -> None:
    """Add scores on a split of the fine-tuning corpora to the MLflow run that trained the model, under `SPLIT/`.

    Their notes become tags.
    """
    with open_tracker(ROOT).start(experiment, experiment, {}, run_id=run_id) as run:
        run.metrics({f"{split}/{name}": value for name, value in scores.values.items()})
        log_datasets(run, find_clips(load_params(), "finetune", split), split)
        run.tags({f"{split}.{name}": note for name, note in scores.notes.items()} | {f"{split}_set": scores.test_set})


def score_table(scores: Mapping[str, Scores]) -> str:
    """Markdown: text→clip and clip→text R@1 with intervals by modality, and the probe, a column per model."""
    names = [f"{d}/{m}/R@1" for d in ("text_to_clip", "clip_to_text") for m in ("vision", "audio", "both")]
    others = ("probe/", "text_to_clip/reranked/R@1")
    names += sorted({name for s in scores.values() for name in s.values if name.startswith(others)})
    head = ["| score | " + " | ".join(scores) + " |", "| --- |" + " ---: |" * len(scores)]
    rows = [f"| {name} | " + " | ".join(s.shown(name) for s in scores.values()) + " |" for name in names]
    return "\n".join([*head, *rows])


def report_run(name: str) -> str:
    """Markdown about the run result of a training: its last losses, and its speed."""
    facts = read_run(RUNS / name)
    metrics = "\n".join(f"| {key} | {value:.3f} |" for key, value in facts["metrics"].items())
    return f"# {name}\n\n| | last |\n| --- | ---: |\n{metrics}\n\n{run_link(facts['run_id'])}"


def run_link(run_id: str) -> str:
    """Markdown: a link to an MLflow run."""
    return f"[MLflow run {run_id[:8]}]({run_page(ROOT, run_id)})"
