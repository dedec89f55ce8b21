"""HTML read back: a page as a browser's parser sees it, for the tests that look at one."""

import base64
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img", "link", "input"}


@dataclass
class Element:
    """An element, its attributes, and what is in it."""

    name: str
    attributes: dict[str, str | None]
    children: list["Element | str"] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(child if isinstance(child, str) else child.text for child in self.children)

    def all(self, name: str, class_: str | None = None) -> list["Element"]:
        """Every element `name` within, in order; `class_` is one of its classes."""
        within = [child for child in self.children if isinstance(child, Element)]
        found = []
        for child in within:
            if child.name == name and (class_ is None or class_ in (child.attributes.get("class") or "").split()):
                found.append(child)
            found += child.all(name, class_)
        return found

    def one(self, name: str, class_: str | None = None) -> "Element":
        [found] = self.all(name, class_)
        return found

    def attribute(self, name: str) -> str:
        value = self.attributes[name]
        assert value is not None
        return value


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open = [Element("", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, dict(attrs))
        self.open[-1].children.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().name == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def parse(document: str) -> Element:
    """The root of `document`, whose every element is closed where it should be."""
    reader = _Reader()
    reader.feed(document)
    reader.close()
    [root] = reader.open
    return root.one("html")


def data_of(uri: str, media_type: str) -> bytes:
    """The content of a data URI."""
    head, _, content = uri.partition(",")
    assert head == f"data:{media_type};base64"
    return base64.b64decode(content, validate=True)
