"""Arms of the ablation at full length with several seeds, and the difference between the first and each other one.

    python -m benchmarks.arms experts-types experts-none --seeds 0 1 2 --out runs/arms

Works on the clips and the pretrained model that `dvc repro pretrain` leaves. It prints a JSON line for each run, and at
the end one for each arm after the first: by kind of query, R@1 by both modalities of the two arms in the mean over the
seeds, and the difference with its 95 % interval, paired by query and drawn over the clips that queries are about. A run
result stays in the directory: the same command again doesn't repeat it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.presets import mean_over_seeds, write_once
from clip4vla.config import Config, load_config
from clip4vla.evaluation.retrieval_metrics import METRICS, paired_difference, retrieval_scores
from clip4vla.evaluation.scores import BY_QUERY, Scores
from clip4vla.pipeline.ablate import spec_of_arm
from clip4vla.pipeline.evaluate import score_retrieval
from clip4vla.training.launch import launch_with_retries

METRIC = "R@1"
RESAMPLES = 1000


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and score every arm with every seed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.arms", description=main.__doc__)
    parser.add_argument("arms", nargs="+", help="names of arms of params.yaml's ablation")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the trainings")
    parser.add_argument("--out", type=Path, required=True)
    chosen = parser.parse_args(arguments)
    config = load_config()
    if unknown := set(chosen.arms) - config.ablation.arms.keys():
        parser.error(f"the ablation has no arm {', '.join(sorted(unknown))}; it has {', '.join(config.ablation.arms)}")
    runs: dict[str, list[Scores]] = {arm: [] for arm in chosen.arms}
    for seed in chosen.seeds:
        for arm in chosen.arms:
            scores = run(config.model_copy(update={"seed": seed}), arm, chosen.out / arm / str(seed))
            runs[arm].append(scores)
            print(json.dumps({"arm": arm, "seed": seed, **by_kind(scores)}), flush=True)
    first, *others = chosen.arms
    for other in others:
        line = {"arm": first, "against": other, "seeds": chosen.seeds}
        print(json.dumps({**line, **differences(runs[first], runs[other])}), flush=True)


def run(config: Config, arm: str, out: Path) -> Scores:
    """Test scores of an arm, fine-tuned as long as the section `retrieval` says.

    Raises:
        ValueError: what is in `out` was made with other settings.
    """
    write_once(config, out / "params.json")
    if not (out / "scores.json").is_file():
        spec = spec_of_arm(config, arm, config.retrieval.epochs)
        launch_with_retries(spec.model_copy(update={"checkpoints": out / ".training", "out": out / "model"}))
        score_retrieval(config, out / "model", "test")[1].write(out)
    return Scores.read(out)


def by_kind(scores: Scores) -> dict[str, float]:
    """R@1 by both modalities of each kind of query."""
    return {kind: round(scores.values[f"{BY_QUERY}/{kind}/both/{METRIC}"], 1) for kind in scores.query_kinds()}


def differences(runs: list[Scores], others: list[Scores]) -> dict[str, Any]:
    """By kind of query: both arms' mean over the seeds, and the difference with its 95 % interval."""
    row = {}
    for kind in runs[0].query_kinds():
        name = f"{BY_QUERY}/{kind}/both"
        ours, theirs = (mean_over_seeds([scores.queries[name] for scores in of]) for of in (runs, others))
        our_hits, their_hits = (METRICS[METRIC].values(table.ranks) for table in (ours, theirs))
        interval = paired_difference(our_hits, their_hits, ours.clip_ids, RESAMPLES, seed=0)
        values = [retrieval_scores(table.ranks)[METRIC] for table in (ours, theirs)]
        row[kind] = {METRIC: [round(value, 1) for value in values], "difference": [round(end, 1) for end in interval]}
    return row


if __name__ == "__main__":
    main()
