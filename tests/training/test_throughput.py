"""Figures of the throughput, by a clock that the test sets."""

import threading
import time

import pytest

from clip4vla.training import throughput
from clip4vla.training.throughput import StepProgress, ThroughputMeter, line, peak_memory_gb
from clip4vla.utils.progress import LINE_EVERY_S

LOSSES = {"text_audio": 1.25, "loss": 1.25}


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("clip4vla.training.throughput.time.monotonic", clock)
    return clock


def test_a_reading_covers_the_steps_since_the_last_one(clock: Clock) -> None:
    meter = ThroughputMeter(clips_per_step=64, peak_flops=100e12)
    clock.now += 6.0
    meter.step(5.0, 10**12)
    meter.read()
    for _ in range(4):
        clock.now += 0.5
        meter.step(0.125, 25 * 10**12)
    figures = meter.read()
    assert figures.pop("memory_gb") == peak_memory_gb() > 0
    assert figures == {"clips_per_second": 128.0, "data_wait": 0.25, "tflops": 50.0, "mfu": 0.5}


def test_the_whole_run_includes_its_first_step(clock: Clock) -> None:
    meter = ThroughputMeter(clips_per_step=10, peak_flops=2e12)
    clock.now += 6.0
    meter.step(5.0, 10**12)
    meter.read()
    clock.now += 4.0
    meter.step(0.0, 9 * 10**12)
    figures = meter.read_whole()
    del figures["memory_gb"]
    assert figures == {"clips_per_second": 2.0, "data_wait": 0.5, "tflops": 1.0, "mfu": 0.5}
    assert meter.eta_s(3) == 15.0


def test_there_is_no_mfu_where_the_peak_is_unknown(clock: Clock) -> None:
    meter = ThroughputMeter(clips_per_step=10, peak_flops=None)
    clock.now += 1.0
    meter.step(0.0, 10**12)
    figures = meter.read()
    assert "mfu" not in figures
    assert figures["tflops"] == 1.0
    assert "MFU" not in line(1, 9, LOSSES, 1e-3, figures, 8.0)


def test_a_line_has_progress_losses_and_speed() -> None:
    figures = {"clips_per_second": 1234.5, "data_wait": 0.03, "memory_gb": 41.25, "tflops": 412.3, "mfu": 0.4167}
    assert line(7, 900, LOSSES, 3e-4, figures, 125.2) == (
        "step   7/900  text_audio 1.250  loss 1.250  lr 3.0e-04  1,200 clips/s  412 TFLOP/s  MFU 42%  data 3%  "
        "41.2 GB  ETA 2:05"
    )


@pytest.mark.parametrize(("rate", "shown"), [(0.00432, "0.0043"), (0.96, "0.96"), (12.34, "12"), (98765.0, "99,000")])
def test_a_speed_has_two_digits_and_is_never_0(rate: float, shown: str) -> None:
    figures = {"clips_per_second": rate, "data_wait": 0.0, "memory_gb": 1.0, "tflops": 1.0}
    assert f"  {shown} clips/s  " in line(1, 9, LOSSES, 1e-3, figures, 7325.0)
    assert line(1, 9, LOSSES, 1e-3, figures, 7325.0).endswith("ETA 2:02:05")


def test_within_a_step_a_line_says_where_it_is_how_fast_and_what_is_left(clock: Clock) -> None:
    progress = StepProgress(steps=10, clips_per_step=32, shows=True)
    progress.begin(2)
    clock.now += 30.0
    assert progress.line() == "in step 3/10: waiting for its clips  after 30 s"
    progress.at("micro-batch 3 of 8, pass 2 of 2", 0.5)
    clock.now += 290.0
    # half a step of 32 clips in 320 s; 7.5 steps of 640 s are left
    assert progress.line() == "in step 3/10: micro-batch 3 of 8, pass 2 of 2  0.050 clips/s  ETA 1:20:00"


def test_no_more_than_20_seconds_pass_without_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert LINE_EVERY_S <= 20
    assert throughput.LOOK_EVERY_S < LINE_EVERY_S / 2
    monkeypatch.setattr(throughput, "LINE_EVERY_S", 0.2)
    monkeypatch.setattr(throughput, "LOOK_EVERY_S", 0.05)
    progress, silent = (StepProgress(10, 32, shows=shows) for shows in (True, False))
    progress.begin(0)
    threads = threading.active_count()
    printed = ""
    with progress.watched(), silent.watched():
        deadline = time.monotonic() + 30.0
        while printed.count("in step 1/10: waiting for its clips") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            printed += capsys.readouterr().out
    assert threading.active_count() == threads
    assert {text.partition("  ")[0] for text in printed.splitlines()} == {"in step 1/10: waiting for its clips"}
