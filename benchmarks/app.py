"""`python -m benchmarks.app`: how long the search page takes to answer a sentence, among many clips.

`clip4vla app` runs in a process of its own on an index of synthetic vectors and a model of random weights. A time is
that of the whole HTTP request: the sentence is embedded, clips are found, and the answer is rendered.
"""

import json
import os
import tempfile
import urllib.request
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import lance
import numpy as np
import torch

from benchmarks.http_load import SENTENCES, free_port, load_figures, save_random_model, serving
from benchmarks.measure import report, silence
from benchmarks.search import write_clips
from clip4vla.inference.embedder import Embedder
from clip4vla.inference.index import ABOUT, CLIPS, MODEL, IndexedModel, index_vectors


def write_index(directory: Path, clips: int, architecture: str) -> None:
    """Write an index of synthetic clips, with a model whose vectors have their width."""
    inference = save_random_model(directory / MODEL, architecture)
    width = Embedder.open(directory / MODEL).encode_text(["a bell"]).shape[1]
    write_clips(directory / CLIPS, clips, width, np.random.default_rng(0))
    index_vectors(lance.dataset(str(directory / CLIPS)))
    model = IndexedModel(
        name="random", version="1", content="", inference=inference, clip_seconds=inference.clips.max_seconds
    )
    about = {"folder": str(directory / "media"), "model": model.model_dump(mode="json")}
    (directory / ABOUT).write_text(json.dumps(about), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write, serve, search, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.app", description=__doc__)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--requests", type=int, default=100)
    parser.add_argument("--clients", type=int, default=1)
    parser.add_argument("--architecture", default="stamp-small")
    settings = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as scratch, silence():
        root, port = Path(scratch), free_port()
        (root / "index").mkdir()
        write_index(root / "index", settings.clips, settings.architecture)
        url = f"http://127.0.0.1:{port}"

        def search(number: int) -> None:
            sentence = quote(f"{SENTENCES[number % len(SENTENCES)]} {number}")
            with urllib.request.urlopen(f"{url}/results?q={sentence}", timeout=60) as answer:
                answer.read()

        with serving(["clip4vla", "app", "--index", "index", "--port", str(port)], url, os.environ, root):
            results = load_figures(search, settings.requests, settings.clients)
    report("app", torch.device("cpu"), settings, results, packages=("pylance", "fastapi"))


if __name__ == "__main__":
    main()
