"""What presets are worth: pretraining and fine-tuning of each on the same data and budget, with several seeds.

    python -m benchmarks.presets default paper --seeds 3 --pretrain-epochs 4 --finetune-epochs 3 --out runs/presets

Works on the clips that `dvc repro clips` leaves, and prints a JSON line for each preset. A run result stays in the
directory; one that is there isn't run again.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from clip4vla.evaluation.retrieval import QueryRanks, retrieval_intervals, retrieval_scores
from clip4vla.evaluation.scores import QueryTable, Scores
from clip4vla.params import Params, load_params
from clip4vla.records import MODALITIES
from clip4vla.training.launch import launch
from flows.training import judge, make_job

PROBES = ("probe/nonverbal/sound/R@1", "probe/verbal/speech/R@1")


def main() -> None:
    """Train and judge every preset with every seed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.presets", description=main.__doc__)
    parser.add_argument("presets", nargs="+", help="names of params.yaml's presets")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretrain-epochs", type=int, required=True)
    parser.add_argument("--finetune-epochs", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args()
    rows = {}
    for preset in chosen.presets:
        runs = []
        for seed in range(chosen.seeds):
            params = budget(load_params(preset=preset), seed, chosen.pretrain_epochs, chosen.finetune_epochs)
            runs.append(run(params, chosen.out / preset / str(seed)))
        rows[preset] = summary(runs)
        print(json.dumps({preset: rows[preset]}), flush=True)


def budget(params: Params, seed: int, pretrain_epochs: int, finetune_epochs: int) -> Params:
    """`params` with another seed and other lengths."""
    lengths = {
        "pretrain": params.pretrain.model_copy(update={"epochs": pretrain_epochs}),
        "finetune": params.finetune.model_copy(update={"epochs": finetune_epochs}),
    }
    return params.model_copy(update={"seed": seed, **lengths})


def run(params: Params, out: Path) -> tuple[Scores, Scores]:
    """Scores of the pretrained and of the fine-tuned model on the test clips."""
    token = params.model.audio_token
    found = []
    for task, start_from in (("pretrain", None), ("finetune", out / "pretrain")):
        training = getattr(params, task)
        if not (out / task / "scores.json").is_file():
            job = make_job(params, task, task, training, "sample" if task == "pretrain" else token, start_from)
            launch(job.model_copy(update={"checkpoints": out / f".{task}", "out": out / task}))
            judge(params, out / task, "test", training, token)[1].write(out / task)
        found.append(Scores.read(out / task))
    return found[0], found[1]


def summary(runs: list[tuple[Scores, Scores]]) -> dict[str, Any]:
    """Text→clip R@1 after fine-tuning, by seed and in the mean with its 95 % interval over clips; the mean probes."""
    row: dict[str, Any] = {}
    for modality in MODALITIES:
        tables = [finetuned.queries[f"text_to_clip/{modality}"] for _, finetuned in runs]
        together = mean_over_seeds(tables)
        ends = retrieval_intervals(together.ranks, together.clip_ids, resamples=1000, seed=0)["R@1"]
        row[modality] = {
            "R@1": round(retrieval_scores(together.ranks)["R@1"], 1),
            "ci95": [round(end, 1) for end in ends],
            "seeds": [round(retrieval_scores(table.ranks)["R@1"], 1) for table in tables],
        }
    for name in PROBES:
        row[name] = round(float(np.mean([pretrained.values[name] for pretrained, _ in runs])), 1)
    return row


def mean_over_seeds(tables: list[QueryTable]) -> QueryTable:
    """The same queries of several runs: each with its mean rank and its mean chance of a hit."""
    rank = np.mean([table.ranks.rank for table in tables], axis=0)
    hits = np.mean([table.ranks.hits for table in tables], axis=0)
    return QueryTable(tables[0].query_ids, tables[0].clip_ids, QueryRanks(rank, hits))


if __name__ == "__main__":
    main()
