"""The comparison of arms over seeds: the difference is paired by query, and no run is repeated."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks import arms
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
    tables = {f"by_query/heard/{modality}": table for modality in MODALITIES}
    return summarise("test set", tables, 200, 0, {})


def test_the_difference_is_of_the_means_over_seeds_and_paired_by_query() -> None:
    found = arms.differences([scores(12), scores(14)], [scores(10), scores(12)])
    assert found["heard"]["R@1"] == [65.0, 55.0]
    difference, low, high = found["heard"]["difference"]
    assert difference == 10.0
    # two queries of one seed and two of the other differ, by a half each
    assert 0 <= low < 10 < high <= 25


def test_no_run_is_repeated_and_each_trains_at_full_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    (tmp_path / "data/clips/finetuning/stampscenes-captions/train.lance").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    trained: list[TrainSpec] = []

    def score(config: Config, directory: Path, split: str) -> tuple[None, Scores]:
        assert split == "test"
        return None, scores(10 + config.seed + 4 * ("types" in str(directory)))

    monkeypatch.setattr(arms, "launch_with_retries", trained.append)
    monkeypatch.setattr(arms, "score_retrieval", score)
    command = ["experts-types", "experts-none", "--seeds", "0", "2", "--out", "runs/arms"]
    arms.main(command)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["arm"], line.get("seed")) for line in lines[:2]] == [("experts-types", 0), ("experts-none", 0)]
    assert lines[-1]["heard"]["R@1"] == [75.0, 55.0]
    assert [spec.model.audio_experts for spec in trained] == [("verbal", "nonverbal"), ("none",)] * 2
    assert {spec.training.epochs for spec in trained} == {arms.load_config().retrieval.epochs}
    arms.main(command)
    assert len(trained) == 4


def test_an_unknown_arm_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        arms.main(["experts-types", "nothing", "--out", "runs/arms"])
    assert "no arm nothing" in capsys.readouterr().err
