"""The answer of a search shows every hit, in the terminal and on a page."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from clip4vla.inference.index import Hit
from clip4vla.records import MODALITIES
from clip4vla.reports.pages import render_page
from clip4vla.reports.search_report import hits_table, search_page
from clip4vla.reports.tables import MODALITY_LABELS
from tests.markup import data_of, parse

HITS = [
    Hit(0, "one.mp4", 0.0, 2.5, dict.fromkeys(MODALITIES, 0.25), (b"first", b"second"), b"sound"),
    Hit(1, "two.mp3", 2.5, 5.0, {"audio": 0.125, "both": 0.2}, (), b"other"),
    Hit(2, "three.mp4", 0.0, 1.0, {}, (b"picture",), None),
]


class FakeIndex(SimpleNamespace):
    weights: dict[str, float] = {}  # noqa: RUF012

    def __len__(self) -> int:
        return 1234

    def listens_for(self, sentence: str, listen: str | None = None) -> dict[str, float]:
        assert sentence == "a <cow> moos"
        return {listen: 1.0} if listen else self.weights


@pytest.fixture
def index() -> Any:
    return FakeIndex(model=SimpleNamespace(name="clip4vla", version="3"), folder=Path("media"))


def test_a_row_has_the_place_of_the_clip_and_its_cosines() -> None:
    table = hits_table("title", HITS)
    assert table.head == ["clip", "span", *MODALITY_LABELS.values()]
    assert table.rows[0] == ["1. one.mp4", "0.0–2.5 s", "0.250", "0.250", "0.250"]
    assert table.rows[1] == ["2. two.mp3", "2.5–5.0 s", "–", "0.125", "0.200"]
    assert table.numeric == (False, True, True, True, True)


def test_a_page_has_a_card_for_each_hit(index: Any) -> None:
    root = parse(render_page(search_page("a <cow> moos", HITS, index)))
    assert root.one("h1").text == "“a <cow> moos”"
    assert [part.text for part in root.one("header").all("dd")] == ["clip4vla version 3", "media", "1,234"]
    cards = root.all("article")
    assert [card.one("p", "title").text for card in cards] == ["1. one.mp4", "2. two.mp3", "3. three.mp4"]
    assert [len(card.all("img")) for card in cards] == [2, 0, 1]
    sounds = [[data_of(each.attribute("src"), "audio/mpeg") for each in card.all("audio")] for card in cards]
    assert sounds == [[b"sound"], [b"other"], []]
    assert [cell.text for cell in cards[1].all("dd")] == ["0.125", "0.200"]


def test_a_page_shows_what_the_sentence_listened_for(index: Any) -> None:
    index.weights = {"sound": 0.784, "speech": 0.121, "picture": 0.095}
    for listen, shown in ((None, "sound 78 %, speech 12 %, picture 10 %"), ("speech", "speech 100 %")):
        header = parse(render_page(search_page("a <cow> moos", HITS, index, listen))).one("header")
        names, values = ([part.text for part in header.all(tag)] for tag in ("dt", "dd"))
        assert dict(zip(names, values, strict=True))["listened for"] == shown
