"""Candidates for promotion without a training: tiny models with scores that are the better the greater their number."""

import shutil
from pathlib import Path

import numpy as np
import torch

from clip4vla.config import AudioConfig, ClipsConfig, InferenceConfig, ModelConfig
from clip4vla.evaluation.retrieval_metrics import QueryRanks
from clip4vla.evaluation.scores import BY_QUERY, QueryTable, Scores, summarise
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.pretrained import save_model
from clip4vla.model.towers import Architecture
from clip4vla.pipeline import promote as stage
from clip4vla.pipeline.project import EVALUATIONS, RUNS
from clip4vla.records import MODALITIES, RUN_FILE, TaskName
from clip4vla.tracking.run import start_run
from clip4vla.utils.files import write_json

TASK: TaskName = "retrieval"
ARCHITECTURE = Architecture(
    "tiny",
    {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "patch_size": 16, "width": 16, "layers": 1, "head_width": 8},
        "text_cfg": {"context_length": 12, "vocab_size": 64, "width": 16, "heads": 2, "layers": 1},
    },
)
INFERENCE = InferenceConfig(clips=ClipsConfig(frames=1, size=32), frames=1, max_tokens=12)
QUERIES = 400


def make_candidate(root: Path, number: int) -> None:
    """Write the run result and the test scores of candidate `number` to where the stage reads them."""
    with start_run(root, TASK, f"candidate {number}") as run:
        pass
    result = root / RUNS / TASK
    shutil.rmtree(result, ignore_errors=True)
    torch.manual_seed(number)
    save_model(Clip4Vla(ModelConfig(architecture="tiny"), AudioConfig(), ARCHITECTURE), result, INFERENCE)
    write_json(result / RUN_FILE, {"run_id": run.run_id})
    make_scores(number).write(root / EVALUATIONS / TASK)


def make_scores(number: int) -> Scores:
    """Scores that are better the greater `number` is, all on the same queries."""
    rank = np.where(np.arange(QUERIES) < QUERIES * (1 - 0.3 * 0.97**number), 1.0, 20.0)
    hits = np.stack([rank <= k for k in (1, 5, 10)], axis=1).astype(np.float64)
    names = tuple(f"query{index}" for index in range(QUERIES))
    table = QueryTable(names, names, QueryRanks(rank, hits))
    by_query = {f"{BY_QUERY}/all/{modality}": table for modality in MODALITIES}
    return summarise("of-these-candidates", {"text_to_clip/both": table} | by_query, 100, 0)


def promote() -> None:
    """The stage, in the working directory."""
    stage.promote(TASK)
