"""The benchmark that kills every stage: it reports what is wrong, and nothing is."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.kills import _without_unlike, differing, mistakes, summarise
from tests.project import REPOSITORY


def state(champion: str | None, *contents: str, intact: bool = True) -> dict[str, dict[str, Any]]:
    return {"model": {"champion": champion, "contents": list(contents), "intact": intact}}


@pytest.mark.parametrize(
    ("before", "now", "wrong"),
    [
        (state(None), state(None), []),
        (state(None), state("1", "a"), []),
        (state("1", "a"), state("1", "a", "b"), []),
        (state("1", "a"), state("2", "a", "b"), []),
        (state("2", "a", "b"), state("1", "a", "b", "c"), ["model: after version 2, the champion is 1"]),
        (state("1", "a"), state(None, "a"), ["model: after version 1, the champion is None"]),
        (state("1", "a"), state("1", "a", "a"), ["model: a model is there twice"]),
        (state("1", "a"), state("1", "a", intact=False), ["model: the champion 1 is not what was registered"]),
    ],
)
def test_the_champion_stays_or_is_the_newest_version(
    before: dict[str, Any], now: dict[str, Any], wrong: list[str]
) -> None:
    assert mistakes(before, now) == wrong


def test_what_differs_or_is_missing_is_named_and_times_and_random_ids_do_not_count() -> None:
    assert differing({"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "3", "d": "4"}) == ["b", "c", "d"]
    assert _without_unlike({"run_id": "x", "loss": [{"data_wait": 1, "a": 2}]}) == {"loss": [{"a": 2}]}


def test_kills_are_counted_by_stage_and_victim() -> None:
    kill = {"stage": "pretrain", "victim": "rank", "signal": "SIGKILL"}
    passes = [{"kills": [kill, kill], "wrong": []}, {"kills": [kill | {"stage": "ablate"}], "wrong": ["x"]}]
    found = summarise(passes, {"results": [{"a": "1"}], "pace": [{"pretrain": 1.0}]})
    assert (found["kills"], found["wrong"]) == (3, ["x"])
    assert found["by_stage"] == {"pretrain": 2, "ablate": 1}
    assert found["by_victim"] == {"rank SIGKILL": 3}


@pytest.mark.slow
def test_stages_that_are_killed_give_the_results_of_undisturbed_ones(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.kills", "--kills", "3", "--directory", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    [line] = done.stdout.splitlines()
    results = json.loads(line)["results"]
    assert results["kills"] == sum(results["by_stage"].values()) >= 3
    assert results["wrong"] == []
