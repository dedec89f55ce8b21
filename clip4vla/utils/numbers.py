"""Formats of numbers: a name and a value in, text out.

All number formats, so that a score reads the same in a table, a page, a figure, the terminal, a tag of the
registry and the reasons of a decision.
"""

import math
from collections.abc import Mapping

NOT_FINITE = "not finite"
"""Text of NaN and of the infinities."""


def format_score(name: str, value: float, interval: tuple[float, float] | None = None) -> str:
    """A score as text, followed by its interval: `69.9 [66.8, 73.1]`.

    Args:
        name: of the score, with or without its groups: `R@1`, `text_to_clip/both/R@1`, `caption/both/slot/sound`,
            `cosine`. It selects the format: recalls and slot accuracies are per cent with one decimal, weights have
            two decimals, cosines three, every other score has three significant digits.
        value: in the unit of the score.
        interval: `(low, high)`, written with as many decimals as `value`.
    """
    spec = _spec(name, value)
    if interval is None:
        return _text(value, spec)
    low, high = interval
    return f"{_text(value, spec)} [{_text(low, spec)}, {_text(high, spec)}]"


def format_difference(value: float) -> str:
    """A signed difference of scores with three significant digits: `+0.260`."""
    return _text(value, f"+{_significant(value)}")


def format_bound(value: float) -> str:
    """A number that is compared with a bound, or the bound: at most four decimals, without trailing zeros.

    More decimals than `format_score` gives, so that 49.96 below a bound of 50 doesn't read as 50.0 below 50.0.
    """
    return f"{value:.4f}".rstrip("0").rstrip(".") if math.isfinite(value) else NOT_FINITE


def format_weights(weights: Mapping[str, float]) -> str:
    """Shares of a whole in per cent: `sound 78 %, speech 12 %, picture 10 %`."""
    return ", ".join(f"{name} {_text(100 * weight, '.0f')} %" for name, weight in weights.items())


def format_count(count: int) -> str:
    """A number of things: `12,345`."""
    return f"{count:,}"


def format_size(size: float) -> str:
    """Bytes as text: `312 kB`, `4.1 GB`, `2.0 TB`."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.{1 if size < 10 * scale else 0}f} {unit}"
    return f"{size:.0f} B"


def format_rate(rate: float) -> str:
    """A number per second with two significant digits: 12,000, 260, 2.6, 0.026."""
    return f"{float(f'{rate:.1e}'):,.0f}" if rate >= 9.95 else f"{rate:#.2g}"


def format_duration(seconds: float) -> str:
    """A time as text, in the unit that suits it: `0.4 s`, `45 s`, `12 min`, `3.4 h`, `12 days`, `3.1 years`."""
    for unit, scale in (("years", 365.25 * 86_400), ("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * scale:
            return f"{seconds / scale:,.{1 if seconds < 10 * scale else 0}f} {unit}"
    return f"{seconds:.{1 if seconds < 10 else 0}f} s"


def format_span(start_s: float, end_s: float) -> str:
    """A span of a file, in seconds: `2.0–4.5 s`."""
    return f"{start_s:.1f}–{end_s:.1f} s"


def _spec(name: str, value: float) -> str:
    """The format specification of the score `name`."""
    *groups, metric = name.split("/")
    if metric.startswith("R@") or "slot" in groups:
        return "z,.1f"
    if "weight" in groups:
        return "z,.2f"
    return "z,.3f" if metric == "cosine" else _significant(value)


def _significant(value: float) -> str:
    """The format specification that gives `value` three significant digits; whole numbers keep all of theirs."""
    if value == 0 or not math.isfinite(value):
        return "z,.2f"
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"z,.{max(0, 2 - exponent)}f" if exponent >= -4 else ".2e"


def _text(value: float, spec: str) -> str:
    return format(value, spec) if math.isfinite(value) else NOT_FINITE
