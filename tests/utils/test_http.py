"""Whether a server answers."""

from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from clip4vla.utils.http import answers


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/here" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Do not log."""


@pytest.fixture
def url() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_only_status_200_is_an_answer(url: str) -> None:
    assert answers(f"{url}/here")
    assert not answers(f"{url}/elsewhere")


def test_a_server_that_is_gone_does_not_answer() -> None:
    assert not answers("http://127.0.0.1:1")
