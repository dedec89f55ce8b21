"""Tables of scores: `Scores` in; a `Table` out, and the same table as Markdown and for the terminal.

Pages render a `Table` as HTML (`pages.py`). Every number goes through `clip4vla.utils.numbers`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.table import Table as TerminalTable
from rich.text import Text

from clip4vla.evaluation.scores import (
    BY_QUERY,
    HELD_OUT,
    ORIGINAL,
    UNSEEN,
    WITH_SOUND,
    Scores,
    is_headline,
    query_kind_place,
)
from clip4vla.records import MODALITIES
from clip4vla.utils.numbers import NOT_FINITE, format_score

LAST = 1000
"""Added to the place of what comes after all else."""
MISSING = "–"
"""Cell of a score that a model doesn't have."""
MODALITY_LABELS: dict[str, str] = {
    m: " + ".join(o for o in MODALITIES if o != "both") if m == "both" else m for m in MODALITIES
}
DIRECTION_LABELS = {"text_to_clip": "text → clip", "clip_to_text": "clip → text"}
QUERY_GROUP_LABELS = {
    BY_QUERY: "text → clip by kind of query",
    HELD_OUT: "text → clip by kind of query, in phrasings that training does not have",
}
RENDERING_LABELS = {ORIGINAL: "original clips", UNSEEN: "unseen rendering"}

_NUMBER = re.compile(r"[+-]?\d[\d,.]*(e[+-]\d+)?( \[[^\]]+\]|–[\d.]+ s)?")
"""With an interval, or with an end and a unit."""


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first cell of a row is the row's name.

    Raises:
        ValueError: a row is longer or shorter than the head.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    """Sentences below the table."""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"{self.title}: a row of {len(row)} cells under a head of {len(self.head)}: {row}")

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Of each column, whether it holds numbers, which are aligned to the right."""
        return tuple(index > 0 and all(map(_is_number, column)) for index, column in enumerate(self._columns()))

    def _columns(self) -> list[tuple[str, ...]]:
        return [tuple(row[index] for row in self.rows) for index in range(len(self.head))]


def _is_number(cell: str) -> bool:
    return cell in ("", MISSING, NOT_FINITE) or _NUMBER.fullmatch(cell) is not None


def score_table(
    title: str, scores: Scores, rows: Mapping[str, str], columns: Mapping[str, str], notes: Sequence[str] = ()
) -> Table:
    """Scores of one model in two dimensions, with their intervals.

    Args:
        rows: label and first part of the names of its scores, such as `text_to_clip/both`.
        columns: label and last part, such as `R@1`.
    """
    cells = [
        [label, *(score_cell(scores, f"{start}/{end}") for end in columns.values())] for label, start in rows.items()
    ]
    return Table(title, ["", *columns], cells, notes)


def comparison_table(models: Mapping[str, Scores], title: str = "") -> Table:
    """The headline scores of one or more models: a row for each score, a column for each model, with intervals."""
    rows = [[name, *(score_cell(scores, name) for scores in models.values())] for name in headlines(models.values())]
    notes = [f"{model}: {scores.size}" for model, scores in models.items() if scores.size]
    notes += [f"{model}: {name}: {note}" for model, scores in models.items() for name, note in scores.notes.items()]
    return Table(title, ["score", *models], rows, notes)


def value_table(head: str, values: Mapping[str, float]) -> Table:
    """A row for each named value, under the head `head`."""
    return Table("", ["", head], [[name, format_score(name, value)] for name, value in values.items()])


def headlines(models: Iterable[Scores]) -> list[str]:
    """Names of the scores that models are compared by, sorted for reading: `is_headline`, and every caption score."""
    names = {name for scores in models for name in scores.values}
    of_captions = ("caption/", f"{WITH_SOUND}/caption/")
    return sorted((name for name in names if is_headline(name) or name.startswith(of_captions)), key=_place)


def _place(name: str) -> tuple[int, int, str]:
    """Directions in their order, kinds of query in theirs, then the rest; within each, modalities, then the rest.

    Scores of the clips with sound alone come last.
    """
    if name.startswith(f"{WITH_SOUND}/"):
        first, second, third = _place(name.removeprefix(f"{WITH_SOUND}/"))
        return first + LAST, second, third
    family, group, *parts = name.split("/")
    families, modalities = [*DIRECTION_LABELS, BY_QUERY, UNSEEN], list[str](MODALITIES)
    first = families.index(family) if family in families else len(families)
    if family == BY_QUERY:
        return first, *query_kind_place(group)
    if family == UNSEEN:
        place, kind = query_kind_place(parts[0])
        return first, 0, f"{group}/{place}/{kind}"
    return first, modalities.index(group) if group in modalities else len(modalities), name


def score_cell(scores: Scores, name: str) -> str:
    """The score `name` with its interval; `MISSING` where `scores` lack it."""
    if name not in scores.values:
        return MISSING
    return format_score(name, scores.values[name], scores.intervals.get(name))


def to_markdown(table: Table) -> str:
    """The table in Markdown, with its title above and its notes below."""
    title = [f"**{table.title}**", ""] if table.title else []
    rule = ["---:" if numeric else "---" for numeric in table.numeric]
    rows = [_markdown_row(row) for row in (table.head, rule, *table.rows)]
    notes = ["", *(f"- {note}" for note in table.notes)] if table.notes else []
    return "\n".join([*title, *rows, *notes])


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def to_terminal(table: Table) -> TerminalTable:
    """The table for `rich.print`, with its title above and its notes below."""
    title = Text(table.title) if table.title else None
    caption = Text("\n".join(table.notes)) if table.notes else None
    shown = TerminalTable(title=title, caption=caption, title_justify="left", caption_justify="left")
    for name, numeric in zip(table.head, table.numeric, strict=True):
        shown.add_column(Text(name), justify="right" if numeric else "left")
    for row in table.rows:
        shown.add_row(*map(Text, row))
    return shown
