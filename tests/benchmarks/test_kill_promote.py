"""The benchmark that kills promotions: it reports what is wrong, and nothing is."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from benchmarks.kill_promote import _mistakes, make_scores
from clip4vla.config import load_config
from clip4vla.registry.gate import decide
from tests.project import REPOSITORY


def state(champion: str, versions: int, twice: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"champion": champion, "versions": versions, "twice": list(twice)}


def test_the_champion_stays_or_is_the_newest_version() -> None:
    assert _mistakes(state("1", 1), state("1", 2)) == []
    assert _mistakes(state("1", 1), state("2", 2)) == []
    assert _mistakes(state("2", 2), state("1", 3)) == ["after version 2, the champion is 1"]
    assert _mistakes(state("2", 2), state("2", 3, ("abc",))) == ["the model abc is there twice"]
    assert _mistakes(state("2", 2), {"champion": None, "versions": 0}) != []


def test_every_candidate_passes_the_gate_against_the_one_before() -> None:
    config = load_config(REPOSITORY / "params.yaml")
    for number in range(1, 80):
        before, after = (make_scores(each) for each in (number - 1, number))
        assert decide(after, before, config.gates.retrieval, 100, 0).promote


@pytest.mark.slow
def test_promotions_that_are_killed_leave_one_champion() -> None:
    command = [sys.executable, "-m", "benchmarks.kill_promote", "--kills", "4"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, env=environment, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    [line] = done.stdout.splitlines()
    results = json.loads(line)["results"]
    assert results["kills"] == 4
    assert results["wrong"] == []
