"""The server of the search page, by HTTP requests without a browser."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from clip4vla.app.server import create_app
from clip4vla.inference.embedder import Embedder
from clip4vla.inference.index import Index, IndexedModel, build
from clip4vla.inference.limits import ReaderLimits
from clip4vla.records import Modality
from tests.inference.tiny import INFERENCE, SENTENCES, save_retrieval
from tests.markup import Element, parse

LIMITS = ReaderLimits(readers=1, max_bytes=200_000, max_decode_s=60)


def client_of(index: Index, captioner: Embedder | None = None) -> TestClient:
    return TestClient(create_app(index, captioner, LIMITS), base_url="http://127.0.0.1:8000")


@pytest.fixture(scope="module")
def client(index: Index) -> Iterator[TestClient]:
    with client_of(index) as client:
        yield client


def cards(part: str) -> list[Element]:
    return parse(part if "<html" in part else f"<html>{part}</html>").all("article", "card")


def titles(part: str) -> list[str]:
    return [card.one("p", "title").text.partition(". ")[2] for card in cards(part)]


def rows(index: Index) -> dict[str, int]:
    return {hit.path: hit.row for hit in index.search("a cow", 10)}


@pytest.mark.parametrize("compare", ["", "sound", "speech", "picture"])
def test_a_sentence_finds_what_the_index_finds(client: TestClient, index: Index, compare: str) -> None:
    answer = client.get("/results", params={"q": "a cow moos", "compare": compare, "top": 4})
    assert answer.status_code == 200
    listen = next((name for name in ("sound", "speech", "picture") if name == compare), None)
    assert titles(answer.text) == [hit.path for hit in index.search("a cow moos", 4, "both", listen)]
    weights = {row.one("dt").text: row.one("dd").text.strip() for row in parse_weights(answer.text)}
    expected = index.listens_for("a cow moos", listen)
    assert weights == {name: f"{100 * weight:.0f} %" for name, weight in expected.items()}


def parse_weights(part: str) -> list[Element]:
    return parse(f"<html>{part}</html>").one("dl", "weights").all("div")


def test_the_page_shows_the_same_without_its_script(client: TestClient, index: Index) -> None:
    page = client.get("/", params={"q": "a cow <moos>", "compare": "sound"})
    assert titles(page.text) == [hit.path for hit in index.search("a cow <moos>", 12, "both", "sound")]
    root = parse(page.text.replace("autofocus", ""))
    [query] = [field for field in root.all("input") if field.attributes.get("name") == "q"]
    assert query.attribute("value") == "a cow <moos>"
    chosen = [field.attribute("value") for field in root.all("input") if "checked" in field.attributes]
    assert chosen == ["sound"]
    assert cards(client.get("/").text) == []


def test_the_page_fetches_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    for text in (page.text, client.get("/style.css").text, client.get("/app.js").text):
        assert not re.search(r"https?://|//cdn|@import|url\(", text)
    assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 404


def test_a_clip_plays_from_its_file_in_parts_at_its_span(client: TestClient, index: Index, folder: Path) -> None:
    found = cards(client.get("/results", params={"q": "a cow", "top": 10}).text)
    for card, hit in zip(found, index.search("a cow", 10), strict=True):
        player = (card.all("video") + card.all("audio"))[0]
        assert player.attribute("src") == f"/clips/{hit.row}/media#t={hit.start_s},{hit.end_s}"
        assert (player.name == "video") == bool(hit.pictures)
    row = rows(index)["long.mp4"]
    part = client.get(f"/clips/{row}/media", headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, (folder / "long.mp4").read_bytes()[10:20])
    assert part.headers["content-type"] == "video/mp4"
    whole = client.get(f"/clips/{row}/media")
    assert whole.content == (folder / "long.mp4").read_bytes()


def test_a_preview_is_what_the_index_keeps(client: TestClient, index: Index) -> None:
    for hit in index.search("a cow", 10):
        for number, picture in enumerate(hit.pictures):
            assert client.get(f"/clips/{hit.row}/pictures/{number}").content == picture
        assert client.get(f"/clips/{hit.row}/pictures/{len(hit.pictures)}").status_code == 404
        assert client.get(f"/clips/{hit.row}/sound").content == hit.sound


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/clips/999999/media", 404),
        ("/clips/999999/sound", 404),
        ("/clips/-1/media", 422),
        ("/clips/99999999999999999999/media", 422),
        ("/clips/1%20or%20true/media", 422),
        ("/clips/..%2F..%2Fetc%2Fpasswd/media", 404),
        ("/media/one.mp4", 404),
        ("/index.json", 404),
    ],
)
def test_nothing_but_clips_of_the_index_is_served(client: TestClient, path: str, status: int) -> None:
    assert client.get(path).status_code == status


def test_a_file_that_has_changed_since_is_not_served(client: TestClient, index: Index) -> None:
    answer = client.get(f"/clips/{rows(index)['replaced.mp4']}/media")
    assert answer.status_code == 404
    assert "replaced.mp4 has changed since it was indexed" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"q": "  "}, "there is nothing to search for"),
        ({}, "q: Field required"),
        ({"q": "a" * 1001}, "q: String should have at most 1000 characters"),
        ({"q": "a", "top": "0"}, "top: Input should be greater than or equal to 1"),
        ({"q": "a", "compare": "smell"}, "compare='smell' is none of '', 'sound', 'speech', 'picture'"),
    ],
)
def test_a_mistake_in_a_request_is_one_sentence(client: TestClient, query: dict[str, str], sentence: str) -> None:
    answer = client.get("/results", params=query)
    assert (answer.status_code, answer.json()) == (422, {"detail": sentence})


@pytest.mark.parametrize("name", ["video.mp4", "sound.mp3", "picture.jpg"])
def test_an_example_finds_what_is_like_it_by_what_it_has(
    client: TestClient, index: Index, examples: Path, name: str
) -> None:
    answer = client.post("/results", params={"top": 3}, content=(examples / name).read_bytes())
    assert answer.status_code == 200
    if name != "picture.jpg":
        expected = index.search_like(index.embedder.read(examples / name), 3)
        assert titles(answer.text) == [hit.path for hit in expected]
    weights = [row.one("dt").text for row in parse_weights(answer.text)]
    has = {"video.mp4": ["picture", "speech", "sound"], "sound.mp3": ["speech", "sound"], "picture.jpg": ["picture"]}
    assert weights == has[name]
    assert ("sound.mp3" in titles(answer.text)) <= (name != "picture.jpg")
    assert "Caption" not in answer.text


def test_a_clip_is_most_like_itself(client: TestClient, folder: Path) -> None:
    for name in ("<b>one & two.mp4", "sound.mp3"):
        for compare in ("", "sound"):
            answer = client.post("/results", params={"compare": compare}, content=(folder / name).read_bytes())
            first = cards(answer.text)[0]
            assert first.one("p", "title").text == f"1. {name}"
            assert "1.000" in first.text


def test_an_example_gets_a_caption_where_there_is_a_captioning_model(
    index: Index, captioner: Embedder, examples: Path
) -> None:
    with client_of(index, captioner) as client:
        answer = client.post("/results", content=(examples / "video.mp4").read_bytes())
        page = client.get("/")
    caption = parse(f"<html>{answer.text}</html>").one("q").text
    assert caption == captioner.caption([examples / "video.mp4"])[0]
    assert set(caption) <= set(" ".join(SENTENCES))
    assert "it also gets a caption" in page.text


@pytest.mark.parametrize(
    ("content", "compare", "status", "sentence"),
    [
        (b"", "", 422, "empty: your file is empty"),
        (b"no media", "", 422, "corrupt: your file: Invalid data found when processing input"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "", 422, "not_media: your file is in no format of media files"),
        (bytes(200_001), "", 413, "too_large: your file has more than 200,000 bytes"),
        (None, "picture", 422, "the example has no picture to compare"),
    ],
)
def test_an_upload_that_cannot_be_used_is_refused_with_the_reason(
    client: TestClient, examples: Path, content: bytes | None, compare: str, status: int, sentence: str
) -> None:
    sent = (examples / "sound.mp3").read_bytes() if content is None else content
    answer = client.post("/results", params={"compare": compare}, content=sent)
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(sentence)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "http://127.0.0.1:8000"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, 200),
        ({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 400),
    ],
)
def test_pages_of_other_sites_are_refused(client: TestClient, headers: dict[str, str], status: int) -> None:
    assert client.get("/results", params={"q": "a"}, headers=headers).status_code == status


def test_a_model_without_experts_compares_modalities(folder: Path, tmp_path: Path) -> None:
    about = IndexedModel(name="clip4vla", version="1", content="a", inference=INFERENCE, clip_seconds=2.0)
    build(folder, tmp_path / "index", save_retrieval(tmp_path / "run"), about)
    index = Index(tmp_path / "index")
    choices: dict[str, Modality] = {"": "both", "video": "video", "audio": "audio"}
    with client_of(index) as client:
        for compare, by in choices.items():
            answer = client.get("/results", params={"q": "a cow", "compare": compare})
            assert titles(answer.text) == [hit.path for hit in index.search("a cow", 12, by)]
        assert client.get("/results", params={"q": "a cow", "compare": "speech"}).status_code == 422
        like = client.post("/results", content=(folder / "sound.mp3").read_bytes())
        assert titles(like.text)[0] == "sound.mp3"
        assert "Listened for" not in like.text
