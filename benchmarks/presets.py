"""Presets compared: pretraining and retrieval fine-tuning of each on the same data and budget, with several seeds.

    python -m benchmarks.presets mean paper published published-front-end --seeds 0 1 2 \\
        --pretrain-epochs 4 --finetune-epochs 3 --out runs/presets

    python -m benchmarks.presets unseen,augmented --out runs/presets

Works on the clips that `dvc repro clips` leaves, with the lengths of the presets unless others are given. It prints a
JSON line for each run, with its scores, those by kind of query and of unseen clips included, and their 95 % intervals
over clips, and at the end a line for each preset, with the means over its seeds. All presets are trained with one seed
before the next, so that what a killed command leaves compares them. A run result stays in the directory: the same
command again doesn't repeat it, and resumes a training from its last checkpoint.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from clip4vla.config import Config, load_config
from clip4vla.evaluation.retrieval_metrics import QueryRanks, retrieval_intervals, retrieval_scores
from clip4vla.evaluation.scores import BY_QUERY, ORIGINAL, UNSEEN, QueryTable, Scores
from clip4vla.pipeline.evaluate import score_retrieval
from clip4vla.pipeline.training import make_spec
from clip4vla.records import MODALITIES
from clip4vla.training.launch import launch_with_retries
from clip4vla.training.spec import TrainSpec

Result = tuple[Scores, Scores]
"""Of the pretrained and of the fine-tuned model."""
TRAININGS: tuple[Literal["pretraining", "retrieval"], ...] = ("pretraining", "retrieval")
PROBES = ("probe/nonverbal/sound/R@1", "probe/verbal/speech/R@1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and score every preset with every seed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.presets", description=main.__doc__)
    parser.add_argument("presets", nargs="+", help="names of presets; with commas, several laid over each other")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--pretrain-epochs", type=int, help="default: those of the preset")
    parser.add_argument("--finetune-epochs", type=int, help="default: those of the preset")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    configs = {  # unknown names fail at once
        preset: with_lengths(load_config(preset=preset.split(",")), chosen.pretrain_epochs, chosen.finetune_epochs)
        for preset in chosen.presets
    }
    runs: dict[str, list[Result]] = {preset: [] for preset in configs}
    for seed in chosen.seeds:
        for preset, config in configs.items():
            result = run(config.model_copy(update={"seed": seed}), chosen.out / preset / str(seed))
            runs[preset].append(result)
            print(json.dumps({"preset": preset, "seed": seed, **budget_of(config), **scores_of(result)}), flush=True)
    for preset, results in runs.items():
        line = {"preset": preset, "seeds": chosen.seeds, **budget_of(configs[preset]), **summary(results)}
        print(json.dumps(line), flush=True)


def budget_of(config: Config) -> dict[str, int]:
    """The length of a run, as a line of output has it."""
    return {"pretrain_epochs": config.pretraining.epochs, "finetune_epochs": config.retrieval.epochs}


def with_lengths(config: Config, pretrain_epochs: int | None, finetune_epochs: int | None) -> Config:
    """`config` with other lengths where these are given."""
    pretraining = config.pretraining.model_copy(update={"epochs": pretrain_epochs or config.pretraining.epochs})
    retrieval = config.retrieval.model_copy(update={"epochs": finetune_epochs or config.retrieval.epochs})
    return config.model_copy(update={"pretraining": pretraining, "retrieval": retrieval})


def run(config: Config, out: Path) -> Result:
    """Scores of the pretrained and of the fine-tuned model on the test clips.

    Raises:
        ValueError: what is in `out` was made with other settings.
    """
    write_once(config, out / "params.json")
    for task in TRAININGS:
        if not (out / task / "model.safetensors").is_file():
            launch_with_retries(spec_of(config, task, out))
        if not (out / task / "scores.json").is_file():
            score_retrieval(config, out / task, "test", with_unseen=True)[1].write(out / task)
    return Scores.read(out / "pretraining"), Scores.read(out / "retrieval")


def spec_of(config: Config, task: Literal["pretraining", "retrieval"], out: Path) -> TrainSpec:
    """The training `task` with its result in `out`, where the fine-tuning finds the pretrained model."""
    if task == "pretraining":
        spec = make_spec(config, task, task, config.pretraining, "sample", None)
    else:
        spec = make_spec(config, task, task, config.retrieval, config.model.audio_token, out / "pretraining")
    return spec.model_copy(update={"checkpoints": out / f".{task}", "out": out / task})


def write_once(config: Config, path: Path) -> None:
    """Write the settings of a new run, or check that those of the run that is there are the same.

    Raises:
        ValueError: they differ.
    """
    settings = config.model_dump_json(indent=2)
    if path.is_file() and path.read_text(encoding="utf-8") != settings:
        raise ValueError(f"{path.parent} holds a run with other settings ({path.name}): choose another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(settings, encoding="utf-8")


def shown(scores: Scores) -> dict[str, str]:
    """Tables of scores by the name that a line of output has for them.

    Captions as queries by modality, and by both the kinds of query, of original and of unseen clips, too.
    """
    names = {modality: f"text_to_clip/{modality}" for modality in MODALITIES}
    groups = (f"{BY_QUERY}/", f"{ORIGINAL}/", f"{UNSEEN}/")
    by_kind = (name for name in scores.queries if name.startswith(groups) and name.endswith("/both"))
    return names | {name.removesuffix("/both"): name for name in by_kind}


def scores_of(result: Result) -> dict[str, Any]:
    """R@1 of `shown` after fine-tuning, with its 95 % interval over clips; the probes after pretraining."""
    pretrained, finetuned = result
    row: dict[str, Any] = {}
    for shown_as, table in shown(finetuned).items():
        name = f"{table}/R@1"
        ends = [round(end, 1) for end in finetuned.intervals[name]]
        row[shown_as] = {"R@1": round(finetuned.values[name], 1), "ci95": ends}
    return row | {name: round(pretrained.values[name], 1) for name in PROBES if name in pretrained.values}


def summary(runs: list[Result]) -> dict[str, Any]:
    """R@1 of `shown` after fine-tuning, by seed and in the mean with its 95 % interval; the mean probes."""
    row: dict[str, Any] = {}
    for shown_as, name in shown(runs[0][1]).items():
        tables = [finetuned.queries[name] for _, finetuned in runs]
        together = mean_over_seeds(tables)
        ends = retrieval_intervals(together.ranks, together.clip_ids, resamples=1000, seed=0)["R@1"]
        row[shown_as] = {
            "R@1": round(retrieval_scores(together.ranks)["R@1"], 1),
            "ci95": [round(end, 1) for end in ends],
            "seeds": [round(retrieval_scores(table.ranks)["R@1"], 1) for table in tables],
        }
    for name in PROBES:
        if all(name in pretrained.values for pretrained, _ in runs):
            row[name] = round(float(np.mean([pretrained.values[name] for pretrained, _ in runs])), 1)
    return row


def mean_over_seeds(tables: list[QueryTable]) -> QueryTable:
    """The same queries of several runs: each with its mean rank and its mean chance of a hit."""
    rank = np.mean([table.ranks.rank for table in tables], axis=0)
    hits = np.mean([table.ranks.hits for table in tables], axis=0)
    return QueryTable(tables[0].query_ids, tables[0].clip_ids, QueryRanks(rank, hits))


if __name__ == "__main__":
    main()
