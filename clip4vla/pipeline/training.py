"""What the training stages share: a `TrainSpec` from params.yaml, and the MLflow run that it is logged to."""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from clip4vla.clips.dataset import data_version
from clip4vla.config import AudioToken, CaptioningConfig, Config, InferenceConfig, PretrainingConfig, RetrievalConfig
from clip4vla.model.pretrained import read_weights
from clip4vla.pipeline.project import CHECKPOINTS, ROOT, RUNS, find_clips
from clip4vla.records import RUN_FILE, WEIGHTS_FILE, Split
from clip4vla.reports.figures import loss_figure
from clip4vla.tracking.run import Run, can_resume, start_run
from clip4vla.training.launch import launch_with_retries
from clip4vla.training.objectives import ContrastiveObjective
from clip4vla.training.spec import Corpus, TrainingName, TrainSpec, read_run
from clip4vla.utils.files import atomic_directory, atomic_file

log = logging.getLogger(__name__)

KEPT = CHECKPOINTS / "finished"
"""Results of trainings whose stage has not succeeded yet, by name and fingerprint; DVC removes those in `runs/`."""
RUN_ID_FILE = "mlflow_run"
"""Beside the checkpoints: the MLflow run that a resumed training continues."""


def make_spec(
    config: Config,
    task: TrainingName,
    name: str,
    training: PretrainingConfig | RetrievalConfig | CaptioningConfig,
    audio_token: AudioToken,
    start_from: Path | None,
) -> TrainSpec:
    """The training `name` for `task`, on every corpus of its role, as params.yaml describes it."""
    paths = find_clips(config, "pretraining" if task == "pretraining" else "finetuning", "train")
    corpora = tuple(Corpus(clips=path, weight=config.corpora[path.parent.name].weight) for path in paths)
    return TrainSpec(
        task=task,
        seed=config.seed,
        corpora=corpora,
        start_from=start_from,
        audio_token=audio_token,
        training=training,
        model=config.model_of(task),
        audio=config.audio,
        trainer=config.trainer,
        inference=InferenceConfig.of(config.clips, training, config.evaluation.beam_search),
        root=ROOT.absolute(),
        checkpoints=CHECKPOINTS / name,
        out=RUNS / name,
        run_id=None,
    )


def run_training(spec: TrainSpec, experiment: str, run_name: str, parent: str | None = None) -> str | None:
    """Train under an MLflow run, which a training resumed from a checkpoint continues; its id.

    A training whose rank dies is resumed here; the stage fails when that does not help. The result is kept beside the
    checkpoints until `forget_results`: a stage that fails after its training doesn't train again.
    """
    kept = KEPT / spec.out.relative_to(RUNS) / spec.fingerprint()
    if not _is_whole(kept):
        _train(spec.model_copy(update={"out": kept}), experiment, run_name, parent)
    with atomic_directory(spec.out) as directory:
        shutil.copytree(kept, directory, dirs_exist_ok=True)
    run_id: str | None = read_run(spec.out)["run_id"]
    return run_id


def forget_results(name: str) -> None:
    """Remove the kept results of the trainings of a stage that has succeeded."""
    shutil.rmtree(KEPT / name, ignore_errors=True)


@contextmanager
def after_result(what: str) -> Iterator[None]:
    """Turn any error of what follows a result into a warning: `what` is missing then, the result stays."""
    try:
        yield
    except Exception as error:
        log.warning("%s: %s: %s", what, type(error).__name__, str(error).partition("\n")[0])


def _is_whole(kept: Path) -> bool:
    """Whether there is a finished and undamaged run result."""
    if not (kept / RUN_FILE).is_file():
        return False
    try:
        read_run(kept)
        read_weights(kept / WEIGHTS_FILE)
    except ValueError as error:
        log.warning("a finished training is damaged and done again: %s", error)
        return False
    return True


def _train(spec: TrainSpec, experiment: str, run_name: str, parent: str | None) -> None:
    note = spec.checkpoints / spec.fingerprint() / RUN_ID_FILE
    with start_run(spec.root, experiment, run_name, parent=parent, run_id=_run_to_resume(spec.root, note)) as run:
        assert run.run_id is not None
        with atomic_file(note) as partial:
            partial.write_text(run.run_id, encoding="utf-8")
        run.log_params(headline_params(spec))
        log_datasets(run, [corpus.clips for corpus in spec.corpora], "train")
        launch_with_retries(spec.model_copy(update={"run_id": run.run_id}))
        with after_result("the figure of the losses is not in MLflow"):
            if terms := run.history("loss/"):
                curves = {name.removeprefix("loss/"): points for name, points in terms.items()}
                run.log_figure(loss_figure(curves), "loss")


def _run_to_resume(root: Path, note: Path) -> str | None:
    """The run that `note` names; None where there is no note, or no such run any more: the checkpoints stay good."""
    if not note.is_file():
        return None
    run_id = note.read_text(encoding="utf-8", errors="replace")
    if can_resume(root, run_id):
        return run_id
    log.warning("MLflow has no run %r any more: the training goes on from its checkpoint in a new run", run_id)
    return None


def run_name(config: Config, what: str) -> str:
    """Name of an MLflow run: what is trained, on which data, by which presets, such as `retrieval · es · default`."""
    finetuning = [name for name, corpus in config.corpora.items() if corpus.role == "finetuning"]
    is_embedded = all(name.startswith("stampscenes") for name in finetuning)
    data = config.stampscenes.language if is_embedded else ", ".join(finetuning)
    return f"{what} · {data} · {', '.join(config.preset)}"


def log_datasets(run: Run, clips: Sequence[Path], context: Split) -> None:
    """Record which versions of which clips the run used, as data sets and, to compare runs by, in one tag."""
    versions = {path.parent.name: data_version(path) for path in clips}
    for path in clips:
        run.log_dataset(path.parent.name, versions[path.parent.name], path, context)
    run.set_tags({f"{context}_clips": ", ".join(f"{name}@{digest[:8]}" for name, digest in versions.items())})


def headline_params(spec: TrainSpec) -> dict[str, Any]:
    """The settings by which runs are compared: flat and few."""
    training, optimizer = spec.training, spec.training.optimizer
    # each expert has a token of its own
    tokens = spec.model.audio_experts if spec.model.fusion == "experts" else (spec.audio_token,)
    return {
        "architecture": spec.model.architecture,
        "weights": spec.model.weights or "scratch",
        "objective": describe_objective(training, spec.audio_token),
        "fusion": spec.model.fusion,
        "audio_token": ", ".join(map(str, tokens)),
        "audio_recipe": spec.audio.recipe,
        "epochs": training.epochs,
        "batch_size": training.batch_size,
        "frames": training.frames,
        "tiles": spec.audio.tiles,
        "optimizer": optimizer.name,
        "lr": optimizer.lr,
        "text_lr_ratio": optimizer.text_lr_ratio,
        "video_lr_ratio": optimizer.video_lr_ratio,
        "weight_decay": optimizer.weight_decay,
        "seed": spec.seed,
    }


def describe_objective(training: PretrainingConfig | RetrievalConfig | CaptioningConfig, token: AudioToken) -> str:
    """The terms of a training, weights of 1 omitted: `text_audio + 2 video_audio`."""
    if isinstance(training, CaptioningConfig):
        return f"caption from {training.modalities}"
    weights = ContrastiveObjective.of(training, token).weights
    return " + ".join(name if weight == 1 else f"{weight:g} {name}" for name, weight in weights.items())
