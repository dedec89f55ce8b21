"""What the benchmarks of servers share: a model of random weights, a server's process, and many clients at once."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from socket import socket

import numpy as np

from clip4vla.config import AudioConfig, ClipsConfig, InferenceConfig, ModelConfig
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.pretrained import save_model
from clip4vla.model.towers import find_architecture
from clip4vla.utils.http import answers
from clip4vla.utils.supervise import supervised

START_S = 300.0
SENTENCES = ("the sound of a bell", "a picture of a dog and the sound of a cow", "someone says hello", "a red car")
Send = Callable[[int], object]


def save_random_model(directory: Path, architecture: str) -> InferenceConfig:
    """Write a retrieval model with experts and how it reads media, as small as the demonstration's by default."""
    model = ModelConfig(architecture=architecture, fusion="experts")
    inference = InferenceConfig(clips=ClipsConfig(frames=4, size=72), frames=4, max_tokens=32)
    save_model(Clip4Vla(model, AudioConfig(tiles=3), find_architecture(architecture, None)), directory, inference)
    (directory / "run.json").write_text("{}", encoding="utf-8")
    return inference


def free_port() -> int:
    """A port of loopback that nothing listens on."""
    with socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(module: Sequence[str], url: str, environment: Mapping[str, str], directory: Path) -> Iterator[None]:
    """Run `python -m MODULE...` in `directory`, wait until `url` answers, and end it with the block.

    Raises:
        RuntimeError: it ends, or does not answer in time.
    """
    command = supervised([sys.executable, "-m", *module])
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])  # MLflow starts uvicorn by name
    process = subprocess.Popen(command, env={**environment, "PATH": path}, cwd=directory, stdout=sys.stderr)
    try:
        deadline = time.monotonic() + START_S
        while not answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the server does not answer at {url}")
            time.sleep(0.3)
        yield
    finally:
        process.terminate()
        process.wait()


def load_figures(send: Send, requests: int, clients: int, rows: int = 1) -> dict[str, float]:
    """Times of `requests` requests by `clients` threads, after a warm-up of one for each.

    Args:
        send: sends the request of a number and waits for the answer; raises where that is no success.
        rows: of a request.
    """
    with ThreadPoolExecutor(clients) as pool:
        list(pool.map(send, range(clients)))
        start = time.perf_counter()
        times_ms = list(pool.map(lambda number: _timed_ms(send, number), range(requests)))
        seconds = time.perf_counter() - start
    p50, p95 = np.percentile(times_ms, (50, 95)).tolist()
    return {"p50_ms": p50, "p95_ms": p95, "requests_per_s": requests / seconds, "rows_per_s": rows * requests / seconds}


def _timed_ms(send: Send, number: int) -> float:
    start = time.perf_counter()
    send(number)
    return 1000 * (time.perf_counter() - start)
