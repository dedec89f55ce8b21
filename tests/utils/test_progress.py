"""Progress: a bar for a person, plain lines for a log file; either way the items come through."""

import re
import sys
import threading
import time

import pytest

from clip4vla.utils import progress
from clip4vla.utils.numbers import format_rate
from clip4vla.utils.progress import track

PATIENCE_S = 30.0


def test_a_log_file_sees_lines_while_one_item_takes_long_and_one_at_the_end(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.05)
    errors = ""

    def wait_for(pattern: str) -> None:
        nonlocal errors
        deadline = time.monotonic() + PATIENCE_S
        while not re.search(pattern, errors):
            assert time.monotonic() < deadline, errors
            errors += capsys.readouterr().err

    seen, threads = [], threading.active_count()
    for item in track("ab", 2, "clips"):
        seen.append(item)
        wait_for(r"0/2 clips  after \d+ s\n" if item == "a" else r"1/2 clips  \S+/s  \S+ s left\n")
    captured = capsys.readouterr()
    assert seen == ["a", "b"]
    assert captured.out == ""
    assert re.fullmatch(r"2/2 clips  in \S+ s", (errors + captured.err).splitlines()[-1])
    assert threading.active_count() == threads


def test_a_line_comes_at_least_every_20_seconds() -> None:
    assert progress.LINE_EVERY_S <= 20


@pytest.mark.parametrize(
    ("done", "seconds", "line"),
    [
        (0, 20.0, "0/5,500 clips  after 20 s"),
        (2560, 10.0, "2,560/5,500 clips  260/s  11 s left"),
        (1, 16.0, "1/5,500 clips  0.062/s  87,984 s left"),
        (5500, 0.5, "5,500/5,500 clips  11,000/s  0 s left"),
    ],
)
def test_a_line_shows_count_rate_and_time_left(done: int, seconds: float, line: str) -> None:
    assert progress._line(done, 5500, "clips", seconds) == line


@pytest.mark.parametrize(("done", "line"), [(0, "0 records  after 20 s"), (5000, "5,000 records  250/s")])
def test_a_line_of_an_unknown_total_shows_count_and_rate(done: int, line: str) -> None:
    assert progress._line(done, None, "records", 20.0) == line


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(12_345, "12,000"), (256, "260"), (99.6, "100"), (10, "10"), (9.96, "10"), (2, "2.0"), (0.0256, "0.026")],
)
def test_a_rate_has_two_significant_digits(rate: float, shown: str) -> None:
    assert format_rate(rate) == shown


def test_nothing_to_do_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track([], 0, "clips")) == []
    assert capsys.readouterr().err == "0/0 clips  in 0.0 s\n"


def test_short_work_of_unknown_length_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("ab", None, "records")) == ["a", "b"]
    assert capsys.readouterr().err == ""


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
