"""The comparison of presets: a line for each run and a mean for each preset, and nothing is done twice."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import presets
from clip4vla.evaluation.retrieval import QueryRanks
from clip4vla.evaluation.scores import QueryTable, Scores, summarise
from clip4vla.params import Params
from clip4vla.records import MODALITIES
from clip4vla.training.job import Job
from tests.project import REPOSITORY

CLIPS = tuple(f"clip{index}" for index in range(20))


def scores(hits: int) -> Scores:
    """Of a model that finds the first `hits` of twenty clips at once, and the others in the eleventh place."""
    rank = np.where(np.arange(20) < hits, 1.0, 11.0)
    table = QueryTable(CLIPS, CLIPS, QueryRanks(rank, (rank[:, None] <= (1, 5, 10)).astype(float)))
    probe = dict.fromkeys(presets.PROBES, 100.0 * hits / 20)
    return summarise("test set", {f"text_to_clip/{modality}": table for modality in MODALITIES}, 200, 0, probe)


class Trainings:
    """What was trained and judged; training `stop_at` is killed."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.judged: list[str] = []
        self.stop_at: int | None = None

    def launch(self, job: Job) -> None:
        if len(self.trained) == self.stop_at:
            raise KeyboardInterrupt
        self.trained.append(f"{job.out.parent.parent.name} {job.seed} {job.task}")
        job.out.mkdir(parents=True)
        (job.out / "model.safetensors").touch()

    def judge(self, params: Params, out: Path, *_: Any) -> tuple[None, Scores]:
        self.judged.append(f"{out.parent.parent.name} {params.seed} {out.name}")
        return None, scores(10 + params.seed if out.name == "finetune" else 5)


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    found = Trainings()
    monkeypatch.setattr(presets, "launch_through", found.launch)
    monkeypatch.setattr(presets, "judge", found.judge)
    return found


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., list[Any]]:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    for role, corpus in (("pretrain", "stampscenes-pretrain"), ("finetune", "stampscenes-captions")):
        (tmp_path / "data" / "clips" / role / corpus / "train.lance").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def of(*arguments: str, epochs: str = "1") -> list[Any]:
        capsys.readouterr()  # what a run that was killed has printed
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
    assert trainings.trained == trainings.judged
    assert len(trainings.trained) == 8


def test_what_is_there_is_not_done_again(run: Callable[..., list[Any]], trainings: Trainings) -> None:
    trainings.stop_at = 3
    with pytest.raises(KeyboardInterrupt):
        run("default", "--seeds", "0", "1")
    trainings.stop_at = None
    lines = run("default", "--seeds", "0", "1")
    assert len(lines) == 3
    assert trainings.trained == [f"default {seed} {task}" for seed in (0, 1) for task in ("pretrain", "finetune")]
    assert run("default", "--seeds", "0", "1") == lines
    (Path("runs/presets/default/1/finetune") / "scores.json").unlink()  # killed between training and judging
    assert run("default", "--seeds", "0", "1") == lines
    assert len(trainings.trained) == 4
    assert trainings.judged[-1] == "default 1 finetune"


def test_runs_with_other_settings_are_not_mixed(run: Callable[..., list[Any]], trainings: Trainings) -> None:
    run("default", "--seeds", "0")
    with pytest.raises(ValueError, match=r"runs/presets/default/0 holds a run with other settings .*another --out"):
        run("default", "--seeds", "0", epochs="2")
    with pytest.raises(ValueError, match="nonesuch"):
        run("default", "nonesuch")
    assert len(trainings.trained) == 2
