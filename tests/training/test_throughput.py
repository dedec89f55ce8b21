"""Figures of the throughput, by a clock that the test sets."""

import pytest

from clip4vla.training.throughput import ThroughputMeter, line, peak_memory_gb

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
        "step   7/900  text_audio 1.250  loss 1.250  lr 3.0e-04  1,234 clips/s  412 TFLOP/s  MFU 42%  data 3%  "
        "41.2 GB  ETA 2:05"
    )
