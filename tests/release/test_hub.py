"""The upload, against a local stand-in of the Hub's HTTP API."""

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clip4vla.__main__ import main
from tests.project import REPOSITORY

TOKEN = "hf_test"


@dataclass
class Hub:
    """What a stand-in has received."""

    endpoint: str
    visibility: str | None = None
    authorization: set[str | None] = field(default_factory=set)
    files: dict[str, bytes] = field(default_factory=dict)
    refuses: bool = False


@pytest.fixture
def hub() -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer({"sha": "0" * 40, "siblings": [], "id": "me/bells"} if "/tree/" not in self.path else [])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.authorization.add(self.headers["Authorization"])
            if received.refuses:
                self.answer({"error": "You need a token that may write"}, 403)
            elif self.path == "/api/repos/create":
                received.visibility = json.loads(body)["visibility"]
                self.answer({"url": f"{received.endpoint}/me/bells"})
            elif "/preupload/" in self.path:
                files = [{"path": f["path"], "uploadMode": "regular"} for f in json.loads(body)["files"]]
                self.answer({"files": [{**file, "shouldIgnore": False} for file in files]})
            elif "/commit/" in self.path:
                lines = [json.loads(line) for line in body.splitlines()]
                added = [line["value"] for line in lines if line["key"] == "file"]
                received.files |= {file["path"]: base64.b64decode(file["content"]) for file in added}
                self.answer({"commitUrl": f"{received.endpoint}/me/bells/commit/1", "commitOid": "1" * 40})
            else:
                self.answer({"errors": [], "warnings": []})

        def answer(self, tree: object, status: int = 200) -> None:
            body = json.dumps(tree).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    received = Hub(f"http://127.0.0.1:{server.server_port}")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield received
    server.shutdown()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# clip4vla\n")
    return tmp_path


PUSH = """
import sys
from pathlib import Path
from clip4vla.release.hub import push
try:
    print(push(Path(sys.argv[1]), "me/bells"))
except ValueError as error:
    sys.exit(str(error))
"""


def upload(folder: Path, endpoint: str) -> "subprocess.CompletedProcess[str]":
    """Upload by another process, because the library reads HF_ENDPOINT when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(
        [sys.executable, "-c", PUSH, str(folder)], env=environment, capture_output=True, text=True, check=False
    )


def test_every_file_is_uploaded_to_a_private_repository(hub: Hub, folder: Path) -> None:
    done = upload(folder, hub.endpoint)
    assert done.stdout.splitlines()[-1:] == [f"{hub.endpoint}/me/bells"], done.stderr
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.visibility == "private"
    assert hub.authorization == {f"Bearer {TOKEN}"}


def test_a_refusal_is_one_line(hub: Hub, folder: Path) -> None:
    hub.refuses = True
    done = upload(folder, hub.endpoint)
    assert done.returncode == 1
    assert re.fullmatch(r"me/bells can't be uploaded: .*403.*\n", done.stderr)


def test_without_a_token_nothing_is_exported_and_the_message_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=re.escape("there is no token of the Hugging Face Hub: set HF_TOKEN")):
        main(["export", "models:/clip4vla@champion", "out", "--push-to-hub", "me/bells"])
    assert list(tmp_path.iterdir()) == []
