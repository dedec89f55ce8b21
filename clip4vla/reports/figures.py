"""Figures of an evaluation: scores, similarities and losses in, matplotlib `Figure`s out.

Nothing here keeps state: figures are objects that the caller saves or hands to the tracker, drawn without
pyplot, so that any process or thread may draw. One colour means one modality in every figure, from a palette
that colour-blind readers can tell apart (Okabe and Ito), and the arms of an ablation have shades of their own; every
bar carries its value and, where the scores have one, its 95 % interval.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from clip4vla.evaluation.retrieval_metrics import CUTOFFS, FloatArray, Interval
from clip4vla.evaluation.scores import BY_QUERY, ORIGINAL, UNSEEN, Scores, query_kind_place
from clip4vla.records import MODALITIES
from clip4vla.reports.tables import DIRECTION_LABELS, MODALITY_LABELS, QUERY_GROUP_LABELS, RENDERING_LABELS
from clip4vla.utils.numbers import format_score

DPI = 200

INK, MUTED, GRID = "#22272e", "#6b7480", "#e4e7eb"
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY = "#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9"
LINES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)

SERIES: tuple[str, ...] = (*MODALITIES, "sound", "speech")
COLOURS = dict(zip(SERIES, (BLUE, ORANGE, GREEN, VERMILLION, PURPLE), strict=True))
ARMS = ("#c9ced6", "#8f99a5", SKY, "#3d7ea6")
LABELS: dict[str, str] = {**MODALITY_LABELS, "sound": "the sound", "speech": "the spoken word"}

ASKED_FOR = {"seen": "video", "heard": "sound", "said": "speech"}
"""What the kinds of query about one thing ask for."""
UNRELATED = "unrelated_sound"
"""The kind of query that compares modalities, not arms."""

_LEGEND_POINTS = 28
"""Room between title and axes for a line of legend."""


def save_figure(figure: Figure, path: Path) -> None:
    """Write `figure` as the PNG `path`, whose folder is made if missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DPI, facecolor="white")


def ablation_figure(trials: Mapping[str, Scores], probe: Scores | None = None) -> Figure:
    """What fusion and audio tokens are worth.

    Left, a group of bars per kind of query with a bar per trial (arm), by video and audio together; where the corpus
    has no queries, a group per modality. Right, where `probe` has values `probe/<token>/<target>/R@1`, how often the
    audio tower recognises the target with that token.

    Raises:
        ValueError: there is no trial, or a trial lacks a score that another one has.
    """
    if not trials:
        raise ValueError("an ablation without trials can't be drawn")
    charts = [_arm_chart(trials)]
    if probe is not None and any(name.startswith("probe/") for name in probe.values):
        charts.append(_probe_chart(probe))
    widths = [max(3.4, 0.55 * chart.values.size) for chart in charts]
    figure = Figure(figsize=(1.6 * len(charts) + sum(widths), 4.6), layout=_layout())
    panels = figure.subplots(1, len(charts), width_ratios=widths, squeeze=False)[0]
    for axes, chart in zip(panels, charts, strict=True):
        _draw(axes, chart, chart.top)
        _legend(axes, len(chart.series))
    return figure


def retrieval_figure(scores: Scores) -> Figure:
    """R@1, R@5 and R@10 of every modality, a panel per direction.

    Raises:
        ValueError: `scores` hold no retrieval, or a modality in one direction only.
    """
    directions = [name for name in DIRECTION_LABELS if any(value.startswith(f"{name}/") for value in scores.values)]
    if not directions:
        raise ValueError(f"there is no retrieval to draw among {', '.join(sorted(scores.values))}")
    shown = [m for m in MODALITIES if f"{directions[0]}/{m}/R@1" in scores.values]
    charts = [_retrieval_chart(scores, direction, shown) for direction in directions]
    figure = Figure(figsize=(1.2 + 4.8 * len(charts), 4.4), layout=_layout())
    panels = figure.subplots(1, len(charts), sharey=True, squeeze=False)[0]
    for axes, chart in zip(panels, charts, strict=True):
        _draw(axes, chart, max(each.top for each in charts))
    _legend(panels[0], len(shown))
    return figure


def query_figure(scores: Scores) -> Figure:
    """R@1 of every modality by kind of query; below it the same in held-out phrasings, where there are any.

    Raises:
        ValueError: `scores` hold no queries by kind.
    """
    charts = [_query_chart(scores, group) for group in QUERY_GROUP_LABELS if scores.query_kinds(group)]
    if not charts:
        raise ValueError("scores without queries by kind can't be drawn")
    width = 1.6 + 0.62 * max(chart.values.size for chart in charts)
    figure = Figure(figsize=(max(6.4, width), 4.2 * len(charts)), layout=_layout())
    panels = figure.subplots(len(charts), 1, sharey=True, squeeze=False)[:, 0]
    for axes, chart in zip(panels, charts, strict=True):
        _draw(axes, chart, max(each.top for each in charts))
        _legend(axes, len(MODALITIES))
    return figure


def unseen_figure(scores: Scores) -> Figure:
    """R@1 by kind of query on the original clips and on those of each corpus of the role `unseen`.

    Raises:
        ValueError: `scores` hold none of such a corpus.
    """
    charts = [_unseen_chart(scores, corpus) for corpus in scores.unseen_corpora()]
    if not charts:
        raise ValueError("scores without unseen clips can't be drawn")
    figure = Figure(figsize=(8.6, 3.4 * len(charts)), layout=_layout())
    panels = figure.subplots(len(charts), 1, sharey=True, squeeze=False)[:, 0]
    for axes, chart in zip(panels, charts, strict=True):
        _draw(axes, chart, max(each.top for each in charts))
        _legend(axes, len(RENDERING_LABELS))
    return figure


def similarity_figure(similarity: ArrayLike, title: str = "Similarity of captions and clips") -> Figure:
    """Heat map of `similarity` (Q, G): a good model has a bright diagonal where query i belongs to item i."""
    matrix = np.asarray(similarity, dtype=np.float64)
    if matrix.ndim != 2 or matrix.size == 0:
        raise ValueError(f"similarity has shape {matrix.shape}, not (queries, gallery items)")
    figure = Figure(figsize=(6.4, 5.4), layout=_layout())
    axes = figure.subplots()
    image = axes.imshow(matrix, cmap="cividis", interpolation="nearest", aspect="auto")
    bar = figure.colorbar(image, ax=axes, shrink=0.9, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(colors=MUTED, labelsize=9, length=0)
    bar.set_label("cosine similarity", color=MUTED, fontsize=10)
    _describe(axes, title, "caption", "clip")
    axes.grid(visible=False)
    for side in axes.spines.values():
        side.set_visible(False)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    return figure


def loss_figure(history: Mapping[str, Sequence[tuple[int, float]]], title: str = "Loss by term") -> Figure:
    """Curves of named terms, each a sequence of (step, value): faint as measured, bold smoothed.

    Raises:
        ValueError: there is no term, or one without values.
    """
    if not history or not all(len(points) for points in history.values()):
        raise ValueError(f"loss terms without values can't be drawn: {list(history)}")
    figure = Figure(figsize=(8.4, 4.6), layout=_layout())
    axes = figure.subplots()
    ends: list[tuple[float, str, str]] = []
    for index, (name, points) in enumerate(history.items()):
        steps, values = np.asarray(points, dtype=np.float64).T
        colour = LINES[index % len(LINES)]
        smooth = _smoothed(values)
        axes.plot(steps, values, color=colour, alpha=0.22, linewidth=0.9)
        axes.plot(steps, smooth, color=colour, linewidth=2, solid_capstyle="round")
        ends.append((float(smooth[-1]), name, colour))
    _describe(axes, title, "loss", "step")
    axes.margins(x=0.01)
    axes.set_ylim(bottom=0)
    _label_ends(axes, ends)
    return figure


@dataclass(frozen=True)
class LevelCurves:
    """A panel of `level_figure`: scores at one level after another."""

    title: str
    x_label: str
    levels: Sequence[float]
    values: Mapping[str, Mapping[str, Sequence[float]]]
    """By kind of query and by what it is scored with, at each level."""


def level_figure(panels: Sequence[LevelCurves], y_label: str) -> Figure:
    """Curves against a level: a colour for each kind of query, a line style for what it is scored with."""
    figure = Figure(figsize=(4.8 * len(panels), 4.4), layout=_layout())
    for axes, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        for kind, by_score in panel.values.items():
            for (name, values), style in zip(by_score.items(), ("-", "--", ":"), strict=False):
                colour = COLOURS[ASKED_FOR[kind]]
                axes.plot(panel.levels, values, color=colour, linestyle=style, linewidth=2, label=f"{kind}, {name}")
        _describe(axes, panel.title, y_label, panel.x_label)
        axes.set_ylim(0, 102)
        axes.margins(x=0.01)
    lines = {str(line.get_label()): line for axes in figure.axes for line in axes.lines}
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=3, frameon=False, fontsize=9.5)
    return figure


def _layout() -> ConstrainedLayoutEngine:
    return ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12, wspace=0.04)


Ends = list[list[Interval | None]]


class _Series(NamedTuple):
    """The bars of one colour."""

    label: str
    colour: str


def _series(names: Sequence[str]) -> list[_Series]:
    """Modalities, or what the audio tower recognises."""
    return [_Series(LABELS.get(name, name), COLOURS.get(name, MUTED)) for name in names]


@dataclass(frozen=True)
class _Chart:
    """Grouped bars: `values` (groups, series), each with its interval where there is one."""

    title: str
    metric: str
    """Whose number format the bars are labelled in."""
    y_label: str
    x_label: str
    groups: Sequence[str]
    series: Sequence[_Series]
    values: FloatArray
    ends: Ends

    @property
    def top(self) -> float:
        """The highest that anything of it reaches."""
        return max([1.0, *self.values.ravel(), *(ends[1] for line in self.ends for ends in line if ends is not None)])


def _arm_chart(trials: Mapping[str, Scores]) -> _Chart:
    kinds = {kind for scores in trials.values() for kind in scores.query_kinds() if kind != UNRELATED}
    groups = {kind: f"{BY_QUERY}/{kind}/both/R@1" for kind in sorted(kinds, key=query_kind_place)}
    x_label = "kind of query"
    if not groups:
        groups, x_label = {MODALITY_LABELS[m]: f"text_to_clip/{m}/R@1" for m in MODALITIES}, "modality"
    values, ends = _table(list(trials.values()), [list(groups.values())] * len(trials))
    by_group = [list(column) for column in zip(*ends, strict=True)]
    arms = [_Series(arm, ARMS[index % len(ARMS)]) for index, arm in enumerate(trials)]
    title = "Effect of fusion and audio tokens"
    return _Chart(title, "R@1", "text → clip R@1 (%)", x_label, list(groups), arms, values.T, by_group)


def _probe_chart(probe: Scores) -> _Chart:
    parts = [name.split("/")[1:3] for name in probe.values if name.startswith("probe/")]
    tokens, targets = sorted({part[0] for part in parts}), sorted({part[-1] for part in parts})
    table = _table([probe] * len(tokens), [[f"probe/{token}/{target}/R@1" for target in targets] for token in tokens])
    title, y_label = "What the audio tower recognises", "clips recognised (%)"
    return _Chart(title, "R@1", y_label, "audio token", tokens, _series(targets), *table)


def _retrieval_chart(scores: Scores, direction: str, shown: Sequence[str]) -> _Chart:
    names = [[f"{direction}/{modality}/R@{k}" for modality in shown] for k in CUTOFFS]
    y_label = "queries answered (%)" if direction == "text_to_clip" else ""
    groups = [f"R@{k}" for k in CUTOFFS]
    table = _table([scores] * len(CUTOFFS), names)
    return _Chart(DIRECTION_LABELS[direction], "R@1", y_label, "", groups, _series(shown), *table)


def _query_chart(scores: Scores, group: str) -> _Chart:
    kinds = scores.query_kinds(group)
    names = [[f"{group}/{kind}/{modality}/R@1" for modality in MODALITIES] for kind in kinds]
    table = _table([scores] * len(kinds), names)
    return _Chart(QUERY_GROUP_LABELS[group], "R@1", "R@1 (%)", "", kinds, _series(MODALITIES), *table)


def _unseen_chart(scores: Scores, corpus: str) -> _Chart:
    kinds = scores.query_kinds(f"{UNSEEN}/{corpus}")
    names = [[f"{group}/{corpus}/{kind}/both/R@1" for group in RENDERING_LABELS] for kind in kinds]
    series = [_Series(RENDERING_LABELS[ORIGINAL], MUTED), _Series(RENDERING_LABELS[UNSEEN], INK)]
    return _Chart(corpus, "R@1", "R@1 (%)", "", kinds, series, *_table([scores] * len(kinds), names))


def _table(scores: Sequence[Scores], names: Sequence[Sequence[str]]) -> tuple[FloatArray, Ends]:
    """Values (groups, bars) and their intervals; `names` and `scores` go group by group."""
    for one, row in zip(scores, names, strict=True):
        missing = [name for name in row if name not in one.values]
        if missing:
            raise ValueError(f"the score {missing[0]} is missing, so this figure can't be drawn")
    values = [[one.values[name] for name in row] for one, row in zip(scores, names, strict=True)]
    ends = [[one.intervals.get(name) for name in row] for one, row in zip(scores, names, strict=True)]
    return np.array(values, dtype=np.float64).reshape(len(scores), -1), ends


def _draw(axes: Axes, chart: _Chart, top: float) -> None:
    """A group of bars per row of the chart's values, a colour per column, whiskers and the value above."""
    width = min(0.26, 0.8 / len(chart.series))
    for column, (label, colour) in enumerate(chart.series):
        places = np.arange(len(chart.groups)) + (column - (len(chart.series) - 1) / 2) * width
        axes.bar(places, chart.values[:, column], width * 0.9, color=colour, label=label, zorder=2)
        for row, place in enumerate(places):
            _whisker(axes, float(place), chart.metric, float(chart.values[row, column]), chart.ends[row][column])
    axes.set_xticks(range(len(chart.groups)), chart.groups)
    axes.set_xlim(-0.55, len(chart.groups) - 0.45)
    axes.set_ylim(0, top * 1.12)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    _describe(axes, chart.title, chart.y_label, chart.x_label, _LEGEND_POINTS)


def _legend(axes: Axes, columns: int) -> None:
    """One line between title and bars."""
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(-0.01, 1.0),
        ncols=columns,
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
        handlelength=1.0,
        handleheight=1.0,
        handletextpad=0.5,
        columnspacing=1.4,
        borderaxespad=0.2,
    )


def _whisker(axes: Axes, place: float, metric: str, value: float, interval: Interval | None) -> None:
    """The interval across a bar's end and the value above both, legible on a grid line too."""
    low, high = interval or (value, value)
    if interval is not None:
        spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar([place], [value], spread, color=INK, elinewidth=1.1, capsize=3, capthick=1.1, zorder=3)
    label = axes.annotate(
        format_score(metric, value),
        (place, max(high, value)),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=8.5,
        color=INK,
        zorder=4,
    )
    label.set_path_effects([withStroke(linewidth=2.5, foreground="white")])


def _describe(axes: Axes, title: str, y_label: str, x_label: str, below_title: float = 10) -> None:
    """Title at the left, quiet axes, horizontal grid lines only; `below_title` points are left for a legend."""
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK, pad=below_title)
    axes.set_ylabel(y_label, color=MUTED, fontsize=10)
    axes.set_xlabel(x_label, color=MUTED, fontsize=10, labelpad=6)
    axes.tick_params(axis="y", colors=MUTED, labelsize=9, length=0)
    axes.tick_params(axis="x", colors=INK, labelsize=10, length=0)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(MUTED)


def _smoothed(values: FloatArray) -> FloatArray:
    """Gaussian mean around each point, which unlike a mean of the past doesn't lag behind a falling curve."""
    width = max(1.0, len(values) / 60)
    offsets = np.arange(-int(3 * width), int(3 * width) + 1)
    kernel = np.exp(-0.5 * (offsets / width) ** 2)
    around = [np.convolve(series, kernel, mode="full") for series in (values, np.ones_like(values))]
    inner = slice(len(offsets) // 2, len(offsets) // 2 + len(values))
    return np.asarray(around[0][inner] / around[1][inner])


def _label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Name each curve at its end, moved apart where two would overlap."""
    bottom, top = axes.get_ylim()
    gap, last = 0.055 * (top - bottom), -np.inf
    for value, name, colour in sorted(ends):
        last = max(value, last + gap)
        axes.annotate(
            f"{name}  {format_score(name, value)}",
            (1.0, last),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            fontsize=9.5,
            color=colour,
            fontweight="bold",
            annotation_clip=False,
        )
