"""The stage `ablate`: a short fine-tuning per arm that differs from the others in nothing else, and what it leaves."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from clip4vla.config import EXPERT_TERMS, Config, load_config
from clip4vla.evaluation.scores import Scores
from clip4vla.pipeline import ablate as stage
from clip4vla.pipeline import training
from clip4vla.pipeline.ablate import ablate, read_trials
from clip4vla.pipeline.summary import summarise_stage
from clip4vla.tracking.run import Run
from clip4vla.training.spec import TrainSpec
from tests.evaluation.by_kind import scores_by_kind
from tests.project import REPOSITORY

ARMS = ("mean-none", "mean-both", "experts-none", "experts-types")
KINDS = ("all", "heard", "said")


def scores_of(arm: int) -> Scores:
    """The better, the later the arm."""
    return scores_by_kind(
        {"said": (0, 4, 4 + arm), "heard": (0, 5, 5 + arm), "all": (2, 5, 10 + arm)}, all_captions=(2, 4, 10 + arm)
    )


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_text((REPOSITORY / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    (tmp_path / "runs/pretraining").mkdir(parents=True)
    (tmp_path / "runs/pretraining/model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def config(project: Path) -> Config:
    return load_config(project / "params.yaml")


@pytest.fixture
def specs(project: Path, monkeypatch: pytest.MonkeyPatch) -> list[TrainSpec]:
    """The trainings that the stage starts, in order: none of them trains, and none is scored or logged."""
    started: list[TrainSpec] = []

    def start(spec: TrainSpec, *_: object) -> None:
        (project / spec.out).mkdir(parents=True)
        started.append(spec)

    def score(_: Config, directory: Path, split: str) -> tuple[None, Scores]:
        assert split == "test"
        if directory == Path("runs/pretraining"):
            probed = [f"probe/{token}/{kind}/R@1" for token in ("verbal", "nonverbal") for kind in ("sound", "speech")]
            return None, Scores("abc", dict.fromkeys(probed, 50.0))
        return None, scores_of(ARMS.index(directory.name))

    @contextmanager
    def unrecorded(*_: Any) -> Iterator[Run]:
        yield Run()

    monkeypatch.setattr(
        training, "find_clips", lambda *_: [Path("data/clips/finetuning/stampscenes-captions/train.lance")]
    )
    for name in ("find_clips", "read_queries", "read_labels"):
        monkeypatch.setattr(stage, name, lambda *_: None)
    monkeypatch.setattr(stage, "run_training", start)
    monkeypatch.setattr(stage, "score_retrieval", score)
    monkeypatch.setattr(stage, "start_run", unrecorded)
    monkeypatch.setattr(stage, "read_run", lambda _: {"run_id": "abc"})
    monkeypatch.setattr(stage, "log_scores", lambda *_: None)
    return started


def test_arms_differ_in_fusion_and_tokens_and_in_nothing_else(specs: list[TrainSpec], config: Config) -> None:
    ablate()
    assert [spec.out.name for spec in specs] == list(ARMS)
    assert [(spec.model.fusion, spec.audio_token) for spec in specs[:2]] == [("mean", "none"), ("mean", "both")]
    assert [(spec.model.fusion, spec.model.audio_experts) for spec in specs[2:]] == [
        ("experts", ("none",)),
        ("experts", ("verbal", "nonverbal")),
    ]
    for spec in specs:
        assert spec.task == "retrieval"
        assert spec.start_from == Path("runs/pretraining")
        assert spec.training.epochs == config.ablation.epochs != config.retrieval.epochs
        before, after = config.retrieval.model_dump(), spec.training.model_dump()
        changed = {name for name in before if before[name] != after[name]}
        assert changed - {"epochs"} == (set() if spec.model.fusion == "experts" else set(EXPERT_TERMS))
        arm = config.ablation.arms[spec.out.name]
        assert spec.model == config.model.model_copy(update=arm.model_dump())
    assert len({spec.checkpoints for spec in specs}) == len({spec.fingerprint() for spec in specs}) == len(ARMS)


def test_the_losses_of_experts_are_those_of_the_arms_that_have_them(specs: list[TrainSpec], config: Config) -> None:
    ablate()
    for term in EXPERT_TERMS:
        weight = getattr(config.retrieval, term)
        assert weight > 0
        assert [getattr(spec.training, term) for spec in specs] == [0.0, 0.0, weight, weight]


def test_the_table_has_a_row_per_arm_kind_of_query_and_modality(specs: list[TrainSpec], config: Config) -> None:
    ablate()
    assert len(specs) == len(ARMS)
    with Path("runs/ablation/table.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["arm"], row["queries"], row["modality"]) for row in rows] == [
        (arm, queries, modality)
        for arm in ARMS
        for queries in ("text_to_clip", *KINDS)
        for modality in ("video", "audio", "both")
    ]
    [found] = [row for row in rows if (row["arm"], row["queries"], row["modality"]) == ("mean-both", "heard", "both")]
    low, high = scores_of(1).intervals["by_query/heard/both/R@1"]
    assert [float(found[name]) for name in ("R@1", "R@1_low", "R@1_high")] == [30.0, low, high]
    assert read_trials(config)["mean-both"].values == scores_of(1).values


def test_metrics_and_figure_are_written(specs: list[TrainSpec]) -> None:
    ablate()
    metrics = json.loads(Path("metrics/ablation.json").read_text(encoding="utf-8"))
    assert list(metrics) == [spec.out.name for spec in specs]
    assert metrics["experts-types"]["by_query"]["said"]["both"]["R@1"] == 35.0
    assert Path("runs/ablation/ablation.png").read_bytes().startswith(b"\x89PNG")


def test_without_queries_the_table_has_the_captions(specs: list[TrainSpec], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "score_retrieval", lambda *_: (None, scores_by_kind({})))
    ablate()
    rows = Path("runs/ablation/table.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 1 + 3 * len(specs)
    assert rows[1].startswith("mean-none,text_to_clip,video,10.0,")


def test_the_summary_has_the_best_arm_and_every_kind_of_query(specs: list[TrainSpec]) -> None:
    ablate()
    summary = summarise_stage("ablate")
    assert summary.headline.startswith("best arm experts-types: R@1 65.0 [")
    lines = summary.report.splitlines()
    assert "| score | mean-none | mean-both | experts-none | experts-types |" in lines
    names = [line.split(" | ")[0].removeprefix("| ") for line in lines if "/R@1" in line]
    assert [name for name in names if name.startswith("by_query")] == [f"by_query/{kind}/both/R@1" for kind in KINDS]
    assert len(specs) == len(ARMS)
