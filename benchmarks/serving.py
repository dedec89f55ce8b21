"""`python -m benchmarks.serving`: the served model under many clients at once, by HTTP.

`mlflow models serve` runs in a process of its own with a model of random weights; each client sends one request after
the other. Figures for requests of one text, of a batch of texts, and of one video of three seconds.
"""

import json
import os
import tempfile
import urllib.request
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.http_load import SENTENCES, free_port, load_figures, save_random_model, serving
from benchmarks.measure import report, silence
from clip4vla.media.encode import encode
from clip4vla.registry.stored_model import save_pyfunc

FPS, SECONDS, SIZE, RATE = 8, 3, 96, 16_000
FILES = 8


def write_videos(folder: Path) -> list[str]:
    """Write videos of noise; their names."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    names = [f"{number}.mp4" for number in range(FILES)]
    for name in names:
        frames = rng.integers(0, 255, (FPS * SECONDS, SIZE, SIZE, 3)).astype(np.uint8)
        encode(folder / name, frames, FPS, rng.uniform(-0.5, 0.5, RATE * SECONDS).astype(np.float32), RATE)
    return names


def sender(url: str, rows_of: Callable[[int], list[dict[str, str]]]) -> Callable[[int], None]:
    """Posts the rows of a request by its number; an answer with an error is a `RuntimeError`."""

    def send(number: int) -> None:
        body = json.dumps({"dataframe_records": rows_of(number)}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=300) as answer:
            for row in json.load(answer)["predictions"]:
                if row["error"] is not None:
                    raise RuntimeError(row["error"])

    return send


def measure(url: str, videos: list[str], settings: Any) -> dict[str, dict[str, float]]:
    """Figures by kind of request."""

    def text(number: int) -> dict[str, str]:
        return {"text": f"{SENTENCES[number % len(SENTENCES)]} {number}"}

    one = sender(url, lambda number: [text(number)])
    many = sender(url, lambda number: [text(number)] * settings.rows)
    media = sender(url, lambda number: [{"media": videos[number % len(videos)]}])
    return {
        "text": load_figures(one, settings.requests, settings.clients),
        "texts": load_figures(many, settings.requests, settings.clients, settings.rows),
        "media": load_figures(media, settings.requests, settings.clients),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Store, serve, send, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=320, help="of each kind")
    parser.add_argument("--rows", type=int, default=64, help="of a request of many texts")
    parser.add_argument("--architecture", default="stamp-small")
    settings = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch, silence():
        root, port = Path(scratch), free_port()
        inference = save_random_model(root / "run", settings.architecture)
        save_pyfunc(root / "model", root / "run", inference)
        videos = write_videos(root / "media")
        # gives readers of files, which wait for their turn, more time than requests of strangers get
        environment = os.environ | {"CLIP4VLA_MEDIA_ROOT": str(root / "media"), "CLIP4VLA_WAIT_S": "30"}
        command = ["mlflow", "models", "serve", "-m", str(root / "model"), "--env-manager", "local"]
        url = f"http://127.0.0.1:{port}"
        with serving([*command, "--port", str(port)], f"{url}/ping", environment, root):
            results = measure(f"{url}/invocations", videos, settings)
    report("serving", torch.device("cpu"), settings, results, packages=("mlflow", "av"))


if __name__ == "__main__":
    main()
