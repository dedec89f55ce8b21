"""The comparison of presets: a line for each run and a mean for each preset; no run is repeated."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import presets
from clip4vla.config import Config
from clip4vla.evaluation.retrieval_metrics import QueryRanks
from clip4vla.evaluation.scores import QueryTable, Scores, summarise
from clip4vla.records import MODALITIES
from clip4vla.training.spec import TrainSpec
from tests.project import REPOSITORY

CLIPS = tuple(f"clip{index}" for index in range(20))


def scores(hits: int) -> Scores:
    """Of a model that finds the first `hits` of twenty clips at once, and the others in the eleventh place."""
    rank = np.where(np.arange(20) < hits, 1.0, 11.0)
    table = QueryTable(CLIPS, CLIPS, QueryRanks(rank, (rank[:, None] <= (1, 5, 10)).astype(float)))
    probe = dict.fromkeys(presets.PROBES, 100.0 * hits / 20)
    names = (*(f"text_to_clip/{modality}" for modality in MODALITIES), "by_query/heard/both", "unseen/voices/said/both")
    return summarise("test set", dict.fromkeys(names, table), 200, 0, probe)


class Trainings:
    """What was trained and scored; training `stop_at` is killed."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.scored: list[str] = []
        self.stop_at: int | None = None

    def launch(self, spec: TrainSpec) -> None:
        if len(self.trained) == self.stop_at:
            raise KeyboardInterrupt
        start_from = {"pretraining": None, "retrieval": spec.out.parent / "pretraining"}
        assert (spec.out.name, spec.start_from) == (spec.task, start_from[spec.task])
        self.trained.append(f"{spec.out.parent.parent.name} {spec.seed} {spec.task}")
        spec.out.mkdir(parents=True)
        (spec.out / "model.safetensors").touch()

    def score(self, config: Config, directory: Path, split: str, with_unseen: bool) -> tuple[None, Scores]:
        assert split == "test"
        assert with_unseen
        self.scored.append(f"{directory.parent.parent.name} {config.seed} {directory.name}")
        return None, scores(10 + config.seed if directory.name == "retrieval" else 5)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    found = Trainings()
    monkeypatch.setattr(presets, "launch_with_retries", found.launch)
    monkeypatch.setattr(presets, "score_retrieval", found.score)
    return found


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[Any]]:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    shutil.copytree(REPOSITORY / "presets", tmp_path / "presets")
    for role, corpus in (("pretraining", "stampscenes-pretraining"), ("finetuning", "stampscenes-captions")):
        (tmp_path / "data" / "clips" / role / corpus / "train.lance").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def of(*arguments: str, epochs: str = "1") -> list[Any]:
        capsys.readouterr()  # drop what a killed run has printed
        lengths = ["--pretrain-epochs", epochs, "--finetune-epochs", "1"]
        presets.main([*arguments, *lengths, "--out", "runs/presets"])
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return of


def test_every_run_has_a_line_and_every_preset_a_mean(run: Callable[..., list[Any]], trainings: Trainings) -> None:
    lines = run("default", "published-front-end", "--seeds", "0", "4")
    assert [(line["preset"], line.get("seed", line.get("seeds"))) for line in lines] == [
        *(("default", 0), ("published-front-end", 0), ("default", 4), ("published-front-end", 4)),
        *(("default", [0, 4]), ("published-front-end", [0, 4])),
    ]
    assert [line["both"]["R@1"] for line in lines] == [50, 50, 70, 70, 60, 60]
    assert lines[4]["both"]["seeds"] == [50, 70]
    for line in lines:
        low, high = line["both"]["ci95"]
        assert low < line["both"]["R@1"] < high
        assert line[presets.PROBES[0]] == 25
        assert line["by_query/heard"] == line["unseen/voices/said"] == line["both"]
    assert trainings.trained == trainings.scored
    assert len(trainings.trained) == 8


def test_finished_runs_are_not_repeated(run: Callable[..., list[Any]], trainings: Trainings) -> None:
    trainings.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        run("default", "--seeds", "0", "1")
    trainings.stop_at = None
    lines = run("default", "--seeds", "0", "1")
    assert len(lines) == 3
    assert trainings.trained == [f"default {seed} {task}" for seed in (0, 1) for task in ("pretraining", "retrieval")]
    assert run("default", "--seeds", "0", "1") == lines
    (Path("runs/presets/default/1/retrieval") / "scores.json").unlink()  # killed between training and scoring
    assert run("default", "--seeds", "0", "1") == lines
    assert len(trainings.trained) == 4
    assert trainings.scored[-1] == "default 1 retrieval"


def test_runs_with_other_settings_are_not_mixed(run: Callable[..., list[Any]], trainings: Trainings) -> None:
    run("default", "--seeds", "0")
    with pytest.raises(ValueError, match=r"runs/presets/default/0 holds a run with other settings .*another --out"):
        run("default", "--seeds", "0", epochs="2")
    with pytest.raises(ValueError, match="nonesuch"):
        run("default", "nonesuch")
    assert len(trainings.trained) == 2
