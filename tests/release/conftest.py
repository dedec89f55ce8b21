"""A project whose registry holds a promoted version, with an ablation on the same test set."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from clip4vla.config import InferenceConfig
from clip4vla.evaluation.retrieval_metrics import QueryRanks
from clip4vla.evaluation.scores import QueryTable, Scores, summarise
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.pretrained import save_model
from clip4vla.records import MODALITIES, Decision
from clip4vla.registry.registry import Registry
from clip4vla.tracking.run import start_run
from clip4vla.tracking.store import prepare_store
from tests.inference.tiny import INFERENCE

NAME = "clip4vla"
CORPORA = {
    "bells": {"role": "finetuning", "version": "2.1", "license": "CC-BY-4.0", "source": "https://bells.example"},
    "mine": {"role": "finetuning", "version": None, "license": None, "source": None},
}
ABLATION = "arm,queries,modality,R@1,R@1_low,R@1_high\nmean,seen,both,40.0,30.0,50.0\nmean,seen,video,41.0,31.0,51.0\n"
DECISION = Decision(True, ("pass: text_to_clip/both/R@1 is 50, required: >= 40",))

Promote = Callable[..., str]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("store")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        prepare_store(root)
    return root


@pytest.fixture
def root(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "project"
    (root / "mlruns").mkdir(parents=True)
    for file in filter(Path.is_file, (store / "mlruns").iterdir()):
        (root / "mlruns" / file.name).write_bytes(file.read_bytes())
    monkeypatch.chdir(root)
    return root


def scores() -> Scores:
    hits = np.array([[1.0] * 3, [0.0, 1.0, 1.0]])
    table = QueryTable(("q0", "q1"), ("q0", "q1"), QueryRanks(np.array([1.0, 3.0]), hits))
    groups = ("text_to_clip", "by_query/seen")
    return summarise("abc", {f"{group}/{m}": table for group in groups for m in MODALITIES}, 100, 0)


@pytest.fixture
def promote(root: Path) -> Promote:
    """Register and promote a model; its version."""

    def register(model: Clip4Vla, inference: InferenceConfig = INFERENCE, ablation: bool = True) -> str:
        directory = root / "runs/retrieval"
        with torch.no_grad():
            save_model(model, directory, inference)
        with start_run(root, "retrieval", "retrieval") as run:
            run.log_params({"fusion": model.config.fusion})
            run.log_dataset("bells", "0123456789abcdef", directory, "test")
        (directory / "run.json").write_text(json.dumps({"run_id": run.run_id}))
        if ablation:
            log_ablation(root)
        registry = Registry(root)
        version = registry.register(str(run.run_id), directory, scores(), NAME, corpora=CORPORA)
        registry.promote(NAME, version, DECISION, None)
        return version

    return register


def log_ablation(root: Path) -> None:
    """A parent run with its table, and a trial that was scored on the test set of `scores`."""
    table = root / "table.csv"
    table.write_text(ABLATION)
    with start_run(root, "ablation", "ablation") as parent:
        parent.log_artifact(table)
        with start_run(root, "ablation", "mean", parent=parent.run_id) as trial:
            trial.set_tags({"test_set": "abc"})
