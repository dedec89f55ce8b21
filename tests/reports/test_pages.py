"""A page is complete and self-contained, and every text on it is shown as plain text."""

import re
from pathlib import Path

import pytest

from clip4vla.reports.pages import Card, Lines, Mark, Page, Section, Sound, render_page, write_page
from clip4vla.reports.tables import Table
from tests.markup import Element, data_of, parse

NASTY = "<script>alert(1)</script> & \"quoted\" 'too' </style> <img src=x onerror=alert(1)>"


def page_of(*cards: Card) -> Page:
    return Page("title", sections=[Section("section", cards=cards)])


def card_of(card: Card) -> Element:
    return parse(render_page(page_of(card))).one("article")


def every_text_nasty() -> Page:
    card = Card(
        NASTY,
        [b"jpeg"],
        Sound(b"sound", 'audio/mpeg" onplay="alert(1)'),
        [Mark(False, NASTY)],
        {NASTY: NASTY},
        [Lines(NASTY, [NASTY])],
        NASTY,
    )
    section = Section(NASTY, NASTY, [Mark(True, NASTY)], [card], [Section(NASTY, cards=[card])])
    table = Table(NASTY, [NASTY, NASTY], [[NASTY, NASTY]], [NASTY])
    return Page(NASTY, NASTY, {NASTY: NASTY}, [table], [section, section])


def test_no_text_becomes_markup() -> None:
    document = render_page(every_text_nasty())
    root = parse(document)
    assert root.all("script") == []
    assert len(root.all("style")) == 1
    assert {image.attribute("src") for image in root.all("img")} == {"data:image/jpeg;base64,anBlZw=="}
    attributes = {name for tag in ("audio", "img", "div", "h2") for each in root.all(tag) for name in each.attributes}
    assert not [name for name in attributes if name.startswith("on")]
    for place in ("title", "h1", "figcaption"):
        assert root.one(place).text == NASTY
    article = root.all("article")[0]
    assert article.one("p", "title").text == article.one("li").text == article.one("dt").text == NASTY
    assert article.one("span").text == f"✗ {NASTY}"


def test_nothing_is_fetched_and_nothing_runs() -> None:
    document = render_page(every_text_nasty())
    assert "http" not in document.replace("http-equiv", "")
    assert "url(" not in document
    assert "@import" not in document
    root = parse(document)
    assert root.all("link") == root.all("iframe") == []
    policy = next(meta for meta in root.all("meta") if "http-equiv" in meta.attributes)
    assert policy.attribute("content").startswith("default-src 'none';")


def test_a_card_shows_what_it_was_given() -> None:
    card = Card(
        "clip 7",
        [b"one", b"two"],
        Sound(b"sound"),
        [Mark(True, "seen"), Mark(False, "heard")],
        {"both": "0.123", "audio": "-1.000"},
        [Lines("generated", ["a dog"]), Lines("references", ["a dog barks", "barking"])],
        "No more.",
    )
    article = card_of(card)
    pictures = article.all("img")
    assert [data_of(each.attribute("src"), "image/jpeg") for each in pictures] == [b"one", b"two"]
    assert [each.attribute("alt") for each in pictures] == [f"clip 7, picture {index} of 2" for index in (1, 2)]
    audio = article.one("audio")
    assert data_of(audio.attribute("src"), "audio/mpeg") == b"sound"
    assert "controls" in audio.attributes
    assert audio.attribute("aria-label") == "Sound of clip 7"
    assert [mark.text for mark in article.all("span")] == ["✓ seen", "✗ heard"]
    assert [part.text for part in article.all("dt")] == ["both", "audio"]
    assert [part.text for part in article.all("dd")] == ["0.123", "-1.000"]
    assert [[line.text for line in part.all("li")] for part in article.all("ul")] == [
        ["a dog"],
        ["a dog barks", "barking"],
    ]
    assert article.all("p")[-1].text == "No more."


def test_what_a_card_lacks_leaves_no_trace() -> None:
    article = card_of(Card("bare"))
    assert [child.name for child in article.children if isinstance(child, Element)] == ["p"]
    assert article.text.strip() == "bare"


@pytest.mark.parametrize(
    ("marks", "right"), [([], False), ([Mark(True, "a")], True), ([Mark(True, "a"), Mark(False, "b")], False)]
)
def test_only_a_card_that_is_all_right_is_framed_so(marks: list[Mark], right: bool) -> None:
    assert ("right" in card_of(Card("card", marks=marks)).attribute("class").split()) is right


def test_the_menu_leads_to_every_section_and_headings_go_down_by_one() -> None:
    inner = Section("inner", sections=[Section("innermost")])
    root = parse(render_page(Page("title", sections=[Section("one", sections=[inner]), Section("two")])))
    names = {element.attribute("id"): element.text for level in "234" for element in root.all(f"h{level}")}
    links = root.one("nav").all("a")
    assert [(link.text, names[link.attribute("href").removeprefix("#")]) for link in links] == [
        ("one", "one"),
        ("two", "two"),
    ]
    assert [root.one(f"h{level}").text for level in "134"] == ["title", "inner", "innermost"]
    assert len(names) == 4
    labelled = [section.attribute("aria-labelledby") for section in root.all("section")]
    assert sorted(labelled) == sorted(names)


def test_a_table_names_its_columns_and_rows_and_sets_intervals_apart() -> None:
    table = Table("scores", ["", "R@1"], [["both", "69.9 [66.8, 73.1]"], ["audio", "16.2"]], ["a note"])
    figure = parse(render_page(Page("title", tables=[table]))).one("figure")
    assert [cell.text for cell in figure.one("thead").all("th")] == ["", "R@1"]
    rows = figure.one("tbody").all("tr")
    assert [[row.one("th").text, row.one("td").text] for row in rows] == [
        ["both", "69.9 [66.8, 73.1]"],
        ["audio", "16.2"],
    ]
    assert [[part.text for part in row.all("span", "interval")] for row in rows] == [[" [66.8, 73.1]"], []]
    assert {cell.attribute("class") for cell in figure.all("td")} == {"number"}
    assert figure.one("p").text == "a note"
    assert figure.one("div", "wide").attribute("aria-label") == "scores"
    assert {cell.attribute("scope") for cell in figure.all("th")} == {"col", "row"}


def test_it_is_fit_for_phones_and_for_the_dark() -> None:
    root = parse(render_page(Page("title")))
    assert root.attribute("lang") == "en"
    named = {meta.attributes.get("name"): meta.attributes.get("content") for meta in root.all("meta")}
    assert named["viewport"] == "width=device-width, initial-scale=1"
    light, dark = root.one("style").text.split("@media (prefers-color-scheme: dark)")
    colours = [set(re.findall(r"--[a-z-]+(?=: #)", part)) for part in (light, dark)]
    assert colours[0] == colours[1] != set()
    used = set(re.findall(r"var\((--[a-z-]+)\)", root.one("style").text))
    assert used == colours[0]


def test_it_is_written_as_utf_8(tmp_path: Path) -> None:
    write_page(Page("Бурёнка 🐄 ñ"), tmp_path / "reports" / "page.html")
    root = parse((tmp_path / "reports" / "page.html").read_text(encoding="utf-8"))
    assert root.one("h1").text == "Бурёнка 🐄 ñ"
    assert root.all("meta")[0].attributes == {"charset": "utf-8"}
