"""What a training is told, and where it leaves what it made.

A job is a JSON file, so that the flow that orders a training and the ranks that do it share nothing else.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from clip4vla.atomic import write_json
from clip4vla.params import (
    AudioParams,
    AudioToken,
    CaptionParams,
    FinetuneParams,
    ModelParams,
    PretrainParams,
    Section,
    TrainerParams,
)

RUN_FILE = "run.json"
PROGRESS_FILE = "progress.json"
"""Beside the checkpoints: how many of the `steps` are done, `step`, while a training goes on."""


class Corpus(Section):
    """A data set of clips and its share of the mixture."""

    clips: Path
    weight: float


class Job(Section):
    """One training, whole."""

    task: Literal["pretrain", "finetune", "caption"]
    """Its section of params.yaml."""
    seed: int
    corpora: tuple[Corpus, ...]
    start_from: Path | None
    """Run result whose weights are the start; None starts from `model.weights`."""
    audio_token: AudioToken
    training: PretrainParams | FinetuneParams | CaptionParams
    model: ModelParams
    audio: AudioParams
    trainer: TrainerParams
    root: Path
    """The project, where the tracker finds its store."""
    checkpoints: Path
    """Where a killed run finds its way back; removed when the result is there."""
    out: Path
    """The run result: model.safetensors, config.json and run.json."""
    run_id: str | None
    """MLflow run that rank 0 logs to."""

    def fingerprint(self) -> str:
        """What decides the weights that come out: a checkpoint of another fingerprint is not resumed from."""
        decisive = self.model_dump(mode="json", exclude={"trainer", "root", "checkpoints", "out", "run_id"})
        decisive |= self.trainer.model_dump(include={"precision"})
        decisive["data"] = [_versions(corpus.clips) for corpus in self.corpora]
        decisive["weights"] = None if self.start_from is None else _digest(self.start_from / "model.safetensors")
        return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()[:16]

    def write(self, path: Path) -> None:
        """Write the job for the ranks to read."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> "Job":
        """Read what `write` wrote; a ValueError says what isn't right."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise ValueError(f"{path} is no training job: {error}") from error


def _versions(clips: Path) -> list[str]:
    """The names of a data set's files, which Lance draws anew for every write."""
    return sorted(p.relative_to(clips).as_posix() for p in clips.rglob("*") if p.is_file())


def data_version(clips: Path) -> str:
    """16 hex digits that tell a data set of clips from every other one, also from itself written anew."""
    return hashlib.sha256("\n".join(_versions(clips)).encode()).hexdigest()[:16]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_run(directory: Path) -> dict[str, Any]:
    """`run.json` of a run result: metrics, provenance, MLflow run id.

    Raises:
        ValueError: the directory holds no finished run.
    """
    path = directory / RUN_FILE
    if not path.is_file():
        raise ValueError(f"{directory} holds no finished run: {RUN_FILE} is missing")
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree
