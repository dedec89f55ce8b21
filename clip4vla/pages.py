"""Self-contained pages to look at results on: a `Page` of titled cards in, HTML out.

A page opens from disk, from an MLflow artifact or in a mail: pictures and sounds are inside it, nothing is fetched,
and no script runs (its content security policy forbids both). Nothing here knows what is shown: whoever has results
says it in `Card`s, grouped in `Section`s. Every text is escaped, wherever it comes from.
"""

import base64
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clip4vla.atomic import atomic_file

STYLE = Path(__file__).with_suffix(".css")
POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"
DEEPEST_HEADING = 6


@dataclass(frozen=True)
class Sound:
    """An encoded sound and the media type by which a browser knows it."""

    data: bytes
    media_type: str = "audio/mpeg"


@dataclass(frozen=True)
class Mark:
    """Whether something is right, in words: colour alone would leave out those who can't see it."""

    right: bool
    text: str


@dataclass(frozen=True)
class Lines:
    """One or several sentences under a label, such as the references of a clip."""

    label: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Card:
    """One thing shown: a clip, with what is said of it. What is empty is left out."""

    title: str
    pictures: Sequence[bytes] = ()
    """JPEG, in order of time, side by side."""
    sound: Sound | None = None
    marks: Sequence[Mark] = ()
    """A card whose every mark is right is framed as such."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """Shown to three decimals."""
    texts: Sequence[Lines] = ()
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells; the first of each row names it."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.head):
                raise ValueError(f"{self.title}: a row of {len(row)} cells under a head of {len(self.head)}: {row}")


@dataclass(frozen=True)
class Section:
    """A heading with cards below it, and sections within it."""

    title: str
    note: str = ""
    marks: Sequence[Mark] = ()
    cards: Sequence[Card] = ()
    sections: Sequence["Section"] = ()


@dataclass(frozen=True)
class Page:
    """A whole page. Its sections are what its menu lists."""

    title: str
    note: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the page is about: the model, the test set, how many clips."""
    tables: Sequence[Table] = ()
    sections: Sequence[Section] = ()


def write(page: Page, path: Path) -> None:
    """Write `page` to `path`, whose folder is made if missing, atomically."""
    with atomic_file(path) as partial:
        partial.write_text(render(page), encoding="utf-8")


def render(page: Page) -> str:
    """The HTML of `page`, a whole document."""
    names = [f"section-{index}" for index in range(1, len(page.sections) + 1)]
    head = _tag(
        "head",
        _tag("meta", charset="utf-8"),
        _tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        _tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        _tag("meta", name="color-scheme", content="light dark"),
        _tag("title", page.title),
        _tag("style", _Html(STYLE.read_text(encoding="utf-8"))),
    )
    body = _tag(
        "body",
        _tag("header", _tag("h1", page.title), _paragraph(page.note), _facts(page.facts), _menu(page.sections, names)),
        _tag(
            "main",
            *map(_table, page.tables),
            *(_section(each, 2, name) for each, name in zip(page.sections, names, strict=True)),
        ),
    )
    return f"<!doctype html>\n{_tag('html', head, body, lang='en')}\n"


class _Html(str):
    """Markup. Any other string is text, and is escaped when it becomes part of markup."""


_NOTHING = _Html("")
_VOID = {"meta", "img"}


def _tag(name: str, /, *content: str, **attributes: str) -> _Html:
    """The element `name`; `class_` is the attribute `class`, `aria_label` is `aria-label`."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(value)}"' for key, value in attributes.items()
    )
    if name in _VOID:
        return _Html(f"<{name}{written}>")
    return _Html(f"<{name}{written}>{_joined(content)}</{name}>")


def _joined(content: Iterable[str]) -> _Html:
    return _Html("".join(part if isinstance(part, _Html) else html.escape(part) for part in content))


def _paragraph(text: str) -> _Html:
    return _tag("p", text, dir="auto") if text else _NOTHING


def _facts(facts: Mapping[str, str]) -> _Html:
    """Names and values side by side."""
    pairs = (_tag("div", _tag("dt", name), _tag("dd", value)) for name, value in facts.items())
    return _tag("dl", *pairs, class_="facts") if facts else _NOTHING


def _menu(sections: Sequence[Section], names: Sequence[str]) -> _Html:
    links = [_tag("a", each.title, href=f"#{name}") for each, name in zip(sections, names, strict=True)]
    return _tag("nav", *links, aria_label="Sections") if len(links) > 1 else _NOTHING


def _table(table: Table) -> _Html:
    """A table that scrolls sideways within the page, by keys as well, where it is too wide."""
    head = _tag("tr", *(_tag("th", name, scope="col") for name in table.head))
    rows = (_tag("tr", _tag("th", row[0], scope="row"), *(_tag("td", cell) for cell in row[1:])) for row in table.rows)
    whole = _tag("table", _tag("thead", head), _tag("tbody", *rows))
    scrolled = _tag("div", whole, class_="wide", tabindex="0", role="region", aria_label=table.title)
    return _tag("figure", _tag("figcaption", table.title), scrolled)


def _section(section: Section, level: int, name: str) -> _Html:
    heading = _tag(f"h{min(level, DEEPEST_HEADING)}", section.title, id=name, dir="auto")
    cards = _tag("div", *map(_card, section.cards), class_="cards") if section.cards else _NOTHING
    within = (_section(each, level + 1, f"{name}-{index}") for index, each in enumerate(section.sections, 1))
    parts = (heading, _marks(section.marks), _paragraph(section.note), cards, *within)
    return _tag("section", *parts, aria_labelledby=name)


def _card(card: Card) -> _Html:
    kind = "card right" if card.marks and all(mark.right for mark in card.marks) else "card"
    return _tag("article", *_card_parts(card), class_=kind)


def _card_parts(card: Card) -> Iterator[_Html]:
    if card.pictures:
        count = len(card.pictures)
        alts = (f"{card.title}, picture {index} of {count}" for index in range(1, count + 1))
        shown = (_picture(jpeg, alt) for jpeg, alt in zip(card.pictures, alts, strict=True))
        yield _tag("div", *shown, class_="pictures")
    if card.sound is not None:
        source = _data_uri(card.sound.media_type, card.sound.data)
        label = f"Sound of {card.title}"
        yield _tag("audio", src=source, controls="", preload="metadata", aria_label=label)
    yield _tag("p", card.title, class_="title", dir="auto")
    yield _marks(card.marks)
    yield _facts({name: f"{value:.3f}" for name, value in card.scores.items()})
    for lines in card.texts:
        yield _tag("p", lines.label, class_="label")
        yield _tag("ul", *(_tag("li", line, dir="auto") for line in lines.lines))
    yield _paragraph(card.note)


def _picture(jpeg: bytes, alt: str) -> _Html:
    return _tag("img", src=_data_uri("image/jpeg", jpeg), alt=alt)


def _marks(marks: Sequence[Mark]) -> _Html:
    signs = (
        _tag("span", f"{'✓' if mark.right else '✗'} {mark.text}", class_=f"mark {'right' if mark.right else 'wrong'}")
        for mark in marks
    )
    return _tag("p", *signs, class_="marks") if marks else _NOTHING


def _data_uri(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
