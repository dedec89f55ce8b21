"""Numbers read the same wherever they stand, and nothing that is no number reads as one."""

import math

import pytest

from clip4vla.utils.numbers import format_bound, format_count, format_difference, format_score, format_size, format_span


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("R@1", 69.94, "69.9"),
        ("text_to_clip/both/R@10", 100.0, "100.0"),
        ("probe/verbal/speech/R@1", -0.01, "0.0"),
        ("caption/both/slot/sound", 1.3, "1.3"),
        ("by_query/heard/weight/nonverbal", 0.8917, "0.89"),
        ("by_query/heard/weight/video", 0.00012, "0.00"),
        ("cosine", -1.0, "-1.000"),
        ("caption/both/CIDEr", 5.0299, "5.03"),
        ("BLEU-4", 0.78, "0.780"),
        ("MdR", 1.0, "1.00"),
        ("MnR", 14.26, "14.3"),
        ("MnR", 1234.5, "1,234"),
        ("loss", 0.0, "0.00"),
        ("loss", 9.996, "10.0"),
        ("loss", 0.000123, "0.000123"),
        ("lr", 1e-5, "1.00e-05"),
        ("loss", math.nan, "not finite"),
        ("R@1", math.inf, "not finite"),
    ],
)
def test_the_name_of_a_score_selects_its_format(name: str, value: float, text: str) -> None:
    assert format_score(name, value) == text


@pytest.mark.parametrize(
    ("name", "value", "interval", "text"),
    [
        ("R@1", 69.94, (66.81, 73.12), "69.9 [66.8, 73.1]"),
        ("CIDEr", 0.98, (0.951, 1.02), "0.980 [0.951, 1.020]"),
        ("MnR", 123.4, (98.7, 150.2), "123 [99, 150]"),
    ],
)
def test_an_interval_has_as_many_decimals_as_the_score(
    name: str, value: float, interval: tuple[float, float], text: str
) -> None:
    assert format_score(name, value, interval) == text


@pytest.mark.parametrize(("value", "text"), [(0.26, "+0.260"), (-12.34, "-12.3"), (0.0, "+0.00"), (0.0412, "+0.0412")])
def test_a_difference_has_a_sign(value: float, text: str) -> None:
    assert format_difference(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(50.0, "50"), (49.96, "49.96"), (0.7 - 0.1, "0.6"), (100.0, "100"), (math.nan, "not finite")]
)
def test_a_bound_has_no_decimals_that_add_nothing(value: float, text: str) -> None:
    assert format_bound(value) == text


def test_counts_have_separators_and_spans_a_unit() -> None:
    assert format_count(1234567) == "1,234,567"
    assert format_span(2.0, 4.52) == "2.0–4.5 s"


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (31_400, "31 kB"),
        (2_540_000, "2.5 MB"),
        (71_000_000_000, "71 GB"),
        (2e12, "2.0 TB"),
    ],
)
def test_a_size_has_two_digits_or_more_and_a_unit(size: int, text: str) -> None:
    assert format_size(size) == text
