"""Progress: a bar for a person, plain lines for a log file; either way the items come through."""

import sys

import pytest

from clip4vla import progress
from clip4vla.progress import track


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only when told to."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_file_sees_a_line_every_ten_seconds_and_one_at_the_end(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []
    for item in track(range(5500), 5500, "clips"):
        seen.append(item)
        clock[0] += 2**-8
    assert seen == list(range(5500))
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "2,560/5,500 clips  256/s  11 s left",
        "5,120/5,500 clips  256/s  1 s left",
        "5,500/5,500 clips  in 21.5 s",
    ]


def test_slow_work_has_a_rate_too(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    for _ in track(range(3), 3, "clips"):
        clock[0] += 16
    assert capsys.readouterr().err.splitlines()[0] == "1/3 clips  0.062/s  32 s left"


def test_nothing_to_do_is_said(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:  # noqa: ARG001
    assert list(track([], 0, "clips")) == []
    assert capsys.readouterr().err == "0/0 clips  in 0.0 s\n"


def test_an_error_among_the_items_is_passed_on(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> object:
        yield 1
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        list(track(broken(), 2, "clips"))
    assert capsys.readouterr().err == ""


def test_a_terminal_sees_a_bar_with_count_rate_and_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    assert list(track(iter("abcd"), 4, "clips")) == list("abcd")
    shown = capsys.readouterr().err
    assert "clips" in shown
    assert "4/4" in shown
    assert "/s" in shown
