"""The benchmark that mutates files: what it reports of an input that fails, and that none does."""

import json
import os
from argparse import Namespace
from functools import partial
from pathlib import Path

import pytest

from benchmarks.fuzz import FAILURES, Outcome, _run_batch, main
from tests.project import REPOSITORY


def die_at(last: int, number: int) -> Outcome:
    if number == last:
        os._exit(1)
    return Outcome("used", 0.0, 0)


@pytest.mark.slow
def test_an_input_whose_process_dies_is_named_and_the_others_are_tried() -> None:
    outcomes = _run_batch(Namespace(max_seconds=5.0), partial(die_at, 12), range(10, 15))
    assert [outcome.kind for outcome in outcomes] == ["used", "used", "died", "used", "used"]
    assert outcomes[2].what == "die_at 12"


@pytest.mark.slow
def test_a_few_mutated_files_come_out_as_content_or_as_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    folder: Path = REPOSITORY / "tests/data/media"
    main(["--media", "20", "--annotations", "20", "--first", "40", "--seeds", str(folder)])
    [line] = capsys.readouterr().out.splitlines()
    results = json.loads(line)["results"]
    assert results["inputs"] == 40
    assert not {*results["by_outcome"]} & {*FAILURES}
