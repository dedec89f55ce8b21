"""The search page in headless Chromium, as a person uses it: type, look, play, send an example."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, expect, sync_playwright

from clip4vla.app.server import create_app
from clip4vla.inference.embedder import Embedder
from clip4vla.inference.index import Index
from clip4vla.inference.limits import ReaderLimits
from clip4vla.utils.http import answers
from tests.servers import free_port

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
OPTIONS = [
    *("--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"),
]
PATIENCE_MS = 120_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed: `apt-get install chromium`")


@pytest.fixture(scope="module")
def address(index: Index, captioner: Embedder) -> Iterator[str]:
    """The page, served by this process."""
    limits = ReaderLimits(readers=1, max_decode_s=60, max_bytes=1_000_000)
    config = uvicorn.Config(create_app(index, captioner, limits), port=(port := free_port()), log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    while not answers(url):
        assert thread.is_alive()
    yield url
    server.should_exit = True
    thread.join(60)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium; root may run it only without its sandbox."""
    options = OPTIONS if os.geteuid() else [*OPTIONS, "--no-sandbox"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page just opened; at the end, nothing was blocked or thrown in it."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    expect.set_options(timeout=PATIENCE_MS)
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda said: problems.append(said.text) if "Content Security Policy" in said.text else None)
    page.on(
        "request", lambda sent: None if sent.url.startswith((address, "blob:", "data:")) else problems.append(sent.url)
    )
    page.goto(address)
    yield page
    page.close()
    assert problems == []


def test_typing_shows_clips_and_what_was_listened_for(page: Page, index: Index) -> None:
    page.get_by_label("What to search for").fill("a cow moos")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="“a cow moos”")).to_be_visible()
    expected = [f"{rank}. {hit.path}" for rank, hit in enumerate(index.search("a cow moos", 12), 1)]
    assert page.locator(".card .title").all_inner_texts() == expected
    assert page.locator(".weights dt").all_inner_texts() == list(index.listens_for("a cow moos"))
    expect(page.get_by_role("status")).to_contain_text(f"{len(expected)} clips in")
    page.get_by_text("picture", exact=True).first.click()
    expect(page.locator(".weights dt")).to_have_text(["picture"])
    assert page.url.endswith("?q=a+cow+moos&compare=picture")
    page.reload()
    expect(page.locator(".weights dt")).to_have_text(["picture"])


def test_a_clip_plays_with_sound_within_its_span(page: Page) -> None:
    page.get_by_label("What to search for").fill("a cow")
    page.get_by_role("button", name="Search").click()
    player = page.locator("video[data-start^='1.6']")  # the second part of the long video
    expect(player).to_have_count(1)
    start, end = (float(player.get_attribute(f"data-{name}") or "nan") for name in ("start", "end"))
    player.evaluate("player => { player.muted = true; return player.play(); }")
    page.wait_for_function("p => p.currentTime > Number(p.dataset.start)", arg=player.element_handle())
    assert start <= player.evaluate("player => player.currentTime") <= end + 0.5
    assert player.evaluate("player => player.webkitAudioDecodedByteCount") > 0
    assert player.evaluate("player => player.videoWidth") == 64
    page.wait_for_function("p => p.paused", arg=player.element_handle())
    assert player.evaluate("player => player.currentTime") == pytest.approx(end, abs=0.5)
    assert 0 < start < end < 5


def test_a_file_that_the_browser_cannot_play_is_shown_by_its_preview(page: Page) -> None:
    page.get_by_label("What to search for").fill("a cow")
    page.keyboard.press("Enter")
    card = page.locator(".card", has_text="replaced.mp4")
    # In one step, since the player is replaced when it fails.
    card.locator("video").evaluate("player => { player.play().catch(() => 0); }")
    expect(card.get_by_text("This browser can't play the file")).to_be_visible()
    expect(card.locator("img")).to_have_count(2)


@pytest.mark.parametrize(("name", "has"), [("video.mp4", 3), ("sound.mp3", 2), ("picture.jpg", 1)])
def test_an_example_that_is_chosen_is_shown_and_captioned(page: Page, examples: Path, name: str, has: int) -> None:
    page.locator("#file").set_input_files(examples / name)
    expect(page.get_by_role("heading", name="Like your example")).to_be_visible()
    expect(page.locator(".weights dt")).to_have_count(has)
    expect(page.locator(".caption")).to_contain_text("Caption: ")
    expect(page.locator("#preview > *")).to_have_count(1)


def test_an_example_can_be_dropped(page: Page) -> None:
    page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.items.add(new File(["no video"], "bad.mp4", { type: "video/mp4" }));
            document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true }));
        }"""
    )
    expect(page.get_by_role("alert")).to_have_text("corrupt: your file: Invalid data found when processing input")


def test_a_bad_upload_is_refused_and_the_next_search_works(page: Page, examples: Path, tmp_path: Path) -> None:
    page.locator("#file").set_input_files(examples / "text.mp4")
    expect(page.get_by_role("alert")).to_contain_text("corrupt: your file")
    expect(page.locator("#preview > *")).to_have_count(0)
    (tmp_path / "large.wav").write_bytes(bytes(1_000_001))
    page.locator("#file").set_input_files(tmp_path / "large.wav")
    expect(page.get_by_role("alert")).to_have_text("The file is too large: at most 1 MB are read.")
    page.get_by_label("What to search for").fill("a cow")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="“a cow”")).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()


def test_a_sound_can_be_recorded(page: Page) -> None:
    page.get_by_role("button", name="Record a sound").click()
    stop = page.get_by_role("button", name="Stop")
    expect(stop).to_be_visible()
    page.wait_for_timeout(1000)
    stop.click()
    expect(page.get_by_role("heading", name="Like your example")).to_be_visible()
    expect(page.locator(".weights dt")).to_have_text(["speech", "sound"])
