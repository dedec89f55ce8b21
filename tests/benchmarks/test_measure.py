"""Times, memory and the report, of calls whose duration and size are known."""

import json
from argparse import Namespace

import pytest
import torch

from benchmarks.measure import median_seconds, peak_bytes, report, silence

CPU = torch.device("cpu")
MEGABYTE = 1 << 20


def test_warm_up_calls_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, durations = [0.0], iter([100.0, 200.0, 3.0, 1.0, 2.0])
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += next(durations)

    assert median_seconds(call, CPU, warmup=2, repeats=3) == 2.0
    assert next(durations, None) is None


def test_the_peak_is_what_is_held_at_once_beyond_what_was_held_before() -> None:
    held = torch.ones(64 * MEGABYTE, dtype=torch.uint8)

    def call() -> None:
        for _ in range(3):
            torch.ones(16 * MEGABYTE, dtype=torch.uint8)
        torch.ones(8 * MEGABYTE, dtype=torch.uint8)

    for _ in range(2):
        peak = peak_bytes(call, CPU)
        assert peak is not None
        assert 15 * MEGABYTE < peak < 18 * MEGABYTE  # the system counts pages late
    assert held.sum() == 64 * MEGABYTE


def test_only_the_report_is_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with silence():
        print("printed by a library")
    report("nothing", CPU, Namespace(repeats=3, device=CPU), {"s": 0.5}, packages=("numpy", "no-such-package"))
    printed = capsys.readouterr()
    assert printed.err == "printed by a library\n"
    [line] = printed.out.splitlines()
    facts = json.loads(line)
    assert facts.keys() == {
        *("benchmark", "date", "machine", "device", "cores", "threads", "versions", "settings", "results")
    }
    assert facts["settings"] == {"repeats": 3, "device": "cpu"}
    assert facts["versions"].keys() == {"torch", "numpy"}
    assert facts["results"] == {"s": 0.5}
    assert " x " in facts["machine"]
    assert len(facts["date"]) == len("2026-01-01")
