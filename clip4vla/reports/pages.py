"""Self-contained HTML pages: a `Page` of tables, sections and cards in, one HTML document out.

A page opens from disk, from an MLflow artifact or from a mail: pictures and sounds are data URIs, nothing is fetched
and no script runs (the content security policy forbids both). Templates and style sheet are in `templates/`; they
escape every text. What a page shows is decided by the reports that build it.
"""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from clip4vla.reports.tables import Table
from clip4vla.utils.files import atomic_file


@dataclass(frozen=True)
class Sound:
    """An encoded sound and its media type."""

    data: bytes
    media_type: str = "audio/mpeg"


@dataclass(frozen=True)
class Mark:
    """A verdict in words, because colour alone is not visible to everyone."""

    right: bool
    text: str


@dataclass(frozen=True)
class Lines:
    """One or several sentences under a label, such as the references of a clip."""

    label: str
    lines: Sequence[str]


@dataclass(frozen=True)
class Card:
    """A clip, with what is to be read about it. Empty fields are left out of the page."""

    title: str
    pictures: Sequence[bytes] = ()
    """JPEG, in order of time, side by side."""
    sound: Sound | None = None
    marks: Sequence[Mark] = ()
    """A card whose marks are all right has a frame of that colour."""
    facts: Mapping[str, str] = field(default_factory=dict)
    texts: Sequence[Lines] = ()
    note: str = ""

    @property
    def all_right(self) -> bool:
        """Whether there are marks and all of them are right."""
        return bool(self.marks) and all(mark.right for mark in self.marks)


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
    """A document. Its menu lists its sections."""

    title: str
    note: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was evaluated: the model, the test set, the number of clips."""
    tables: Sequence[Table] = ()
    sections: Sequence[Section] = ()


def write_page(page: Page, path: Path) -> None:
    """Write `page` to `path`, whose folder is made if missing, atomically."""
    with atomic_file(path) as partial:
        partial.write_text(render_page(page), encoding="utf-8")


def render_page(page: Page) -> str:
    """The HTML document of `page`."""
    return template_environment("clip4vla.reports").get_template("page.html.j2").render(page=page)


@cache
def template_environment(*packages: str) -> Environment:
    """The templates of `packages`, those of the first one before those of the others; they escape every text."""
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package) for package in packages]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["data_uri"] = _data_uri
    environment.filters["without_interval"] = lambda cell: cell.partition(" [")[0]
    environment.filters["interval"] = lambda cell: "".join(cell.partition(" [")[1:])
    return environment


def _data_uri(data: bytes, media_type: str) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
