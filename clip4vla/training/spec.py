"""`TrainSpec`: everything that a training depends on, and where its result goes.

It is a JSON file, so that the stage that starts a training and its ranks share nothing else.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from clip4vla.clips.dataset import data_files
from clip4vla.config import (
    AudioConfig,
    AudioToken,
    CaptioningConfig,
    FrozenConfig,
    InferenceConfig,
    ModelConfig,
    PretrainingConfig,
    RetrievalConfig,
    TrainerConfig,
)
from clip4vla.records import RUN_FILE
from clip4vla.utils.files import read_json, write_json
from clip4vla.utils.hashing import hash_file, hash_json

CHECKPOINT_FORMAT = 4
"""Raised whenever checkpoints of an earlier version no longer fit: those are not resumed from."""
PROGRESS_FILE = "progress.json"
"""Beside the checkpoints: how many of the `steps` are done, `step`, while a training goes on."""


TrainingName = Literal["pretraining", "retrieval", "captioning"]
"""Sections of params.yaml that describe a training."""


class Corpus(FrozenConfig):
    """A data set of clips and its share of the mixture."""

    clips: Path
    weight: float


class TrainSpec(FrozenConfig):
    """One training, whole."""

    task: TrainingName
    """Its section of params.yaml."""
    seed: int
    corpora: tuple[Corpus, ...]
    start_from: Path | None
    """Run result whose weights are the start; None starts from `model.weights`."""
    audio_token: AudioToken
    training: PretrainingConfig | RetrievalConfig | CaptioningConfig
    model: ModelConfig
    audio: AudioConfig
    trainer: TrainerConfig
    inference: InferenceConfig
    """How the trained model will read media and texts; stored with it."""
    root: Path
    """The project, which holds MLflow's store."""
    checkpoints: Path
    """Where a killed run finds its way back; removed when the result is there."""
    out: Path
    """The run result: model.safetensors, config.json and run.json."""
    run_id: str | None
    """MLflow run that rank 0 logs to."""

    def fingerprint(self) -> str:
        """What decides the weights that come out: a checkpoint of another fingerprint is not resumed from."""
        decisive = self.model_dump(
            mode="json", exclude={"trainer", "inference", "root", "checkpoints", "out", "run_id"}
        )
        decisive["training"].pop("inference_frames")
        decisive |= self.trainer.model_dump(include={"precision"})
        decisive["checkpoints"] = CHECKPOINT_FORMAT
        decisive["data"] = [data_files(corpus.clips) for corpus in self.corpora]
        decisive["weights"] = None if self.start_from is None else hash_file(self.start_from / "model.safetensors")
        return hash_json(decisive, digits=16)

    def write(self, path: Path) -> None:
        """Write the spec for the ranks to read."""
        write_json(path, self.model_dump(mode="json"))

    @classmethod
    def read(cls, path: Path) -> "TrainSpec":
        """Read what `write` wrote.

        Raises:
            ValueError: the file isn't a training spec; the message says why.
        """
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise ValueError(f"{path} is no training spec: {error}") from error


def read_run(directory: Path) -> dict[str, Any]:
    """`run.json` of a run result: metrics, provenance, MLflow run id.

    Raises:
        ValueError: the directory holds no finished run, or a damaged one.
    """
    path = directory / RUN_FILE
    if not path.is_file():
        raise ValueError(f"{directory} holds no finished run: {RUN_FILE} is missing")
    tree = read_json(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("run_id", False), str | None):
        raise ValueError(f"{path} isn't of a finished run: it has no run_id")
    return tree
