"""Times, memory and the report, of calls whose duration and size are known."""

import json
import subprocess
import sys
from argparse import Namespace

import pytest
import torch

from benchmarks.measure import median_seconds, report, silence

CPU = torch.device("cpu")
MEGABYTE = 1 << 20


def test_warm_up_calls_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    now, durations = [0.0], iter([100.0, 200.0, 3.0, 1.0, 2.0])
    monkeypatch.setattr("benchmarks.measure.time.perf_counter", lambda: now[0])

    def call() -> None:
        now[0] += next(durations)

    assert median_seconds(call, CPU, warmup=2, repeats=3) == 2.0
    assert next(durations, None) is None


PEAKS = """
import torch
from benchmarks.measure import peak_bytes

held = torch.ones(64 << 20, dtype=torch.uint8)

def call():
    for _ in range(3):
        torch.ones(16 << 20, dtype=torch.uint8)
    torch.ones(8 << 20, dtype=torch.uint8)

for _ in range(2):
    print(peak_bytes(call, torch.device("cpu")))
assert held.sum() == 64 << 20
"""


def test_the_peak_is_what_is_held_at_once_beyond_what_was_held_before() -> None:
    # in a process of its own: blocks may come from what other tests have left in the heap
    done = subprocess.run([sys.executable, "-c", PEAKS], capture_output=True, check=True, text=True)
    for peak in map(int, done.stdout.split()):
        assert 15 * MEGABYTE < peak < 18 * MEGABYTE  # the system counts pages late


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
