"""What MLflow has recorded of earlier runs, to be read long after them.

In: the id of a run, or the fingerprint of a test set. Out: plain records; nothing is written.
"""

import csv
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clip4vla.tracking.store import open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

ABLATION, ABLATION_TABLE = "ablation", "table.csv"
"""The experiment of the ablation, and the artifact of its parent run."""
NEWEST = ("attributes.start_time DESC",)


@dataclass(frozen=True)
class TrainingRecord:
    """A run that trained a model."""

    run_id: str
    params: dict[str, str]
    tags: dict[str, str]
    datasets: tuple[tuple[str, str, str], ...]
    """Name, digest and context (`train`, `val`, `test`) of each data set."""


@dataclass(frozen=True)
class AblationRecord:
    """An ablation, scored on one test set."""

    run_id: str
    git_revision: str
    rows: tuple[dict[str, str], ...]
    """`arm`, `queries`, `modality`, `R@1`, `R@1_low` and `R@1_high` of each score."""


def read_training(root: Path, run_id: str) -> TrainingRecord:
    """The run `run_id` of the project at `root`."""
    run = open_client(root).get_run(run_id)
    datasets = [
        (used.dataset.name, used.dataset.digest, {tag.key: tag.value for tag in used.tags}["mlflow.data.context"])
        for used in (run.inputs.dataset_inputs if run.inputs else ())
    ]
    return TrainingRecord(run_id, run.data.params, run.data.tags, tuple(sorted(datasets)))


def read_ablation(root: Path, test_set: str) -> AblationRecord | None:
    """The newest finished ablation whose trials were scored on this test set; None where there is none."""
    client = open_client(root)
    experiment = client.get_experiment_by_name(ABLATION)
    if experiment is None:
        return None
    scored_alike = f"tags.test_set = '{test_set}' and attributes.status = 'FINISHED'"
    for trial in client.search_runs([experiment.experiment_id], scored_alike, order_by=list(NEWEST)):
        parent = trial.data.tags.get("mlflow.parentRunId")
        if parent is not None and (found := _ablation_of(client, parent)) is not None:
            return found
    return None


def _ablation_of(client: "MlflowClient", parent: str) -> AblationRecord | None:
    run = client.get_run(parent)
    if run.info.status != "FINISHED" or ABLATION_TABLE not in {file.path for file in client.list_artifacts(parent)}:
        return None
    with tempfile.TemporaryDirectory() as folder:
        table = Path(client.download_artifacts(parent, ABLATION_TABLE, folder))
        with table.open(newline="", encoding="utf-8") as file:
            rows = tuple(csv.DictReader(file))
    return AblationRecord(parent, run.data.tags.get("git_revision", "unknown"), rows)
