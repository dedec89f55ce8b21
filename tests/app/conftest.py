"""A small folder of media, indexed by a tiny model with experts, and a captioning model."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import clip4vla
from clip4vla.inference.embedder import Embedder
from clip4vla.inference.index import Index, IndexedModel, build
from clip4vla.media.encode import encode_mp3
from clip4vla.model.pretrained import save_model
from tests.inference.tiny import INFERENCE, RATE, expert_model, save_captioning, write_video


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos, one of them long, a sound, and a video that is replaced after it was indexed."""
    folder = tmp_path_factory.mktemp("media")
    write_video(folder / "<b>one & two.mp4", 1)
    write_video(folder / "long.mp4", 2, 5.0)
    write_video(folder / "replaced.mp4", 3)
    noise = np.random.default_rng(4).integers(-9000, 9000, (1, RATE)).astype(np.int16)
    (folder / "sound.mp3").write_bytes(encode_mp3(noise, RATE))
    return folder


@pytest.fixture(scope="session")
def index(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = tmp_path_factory.mktemp("project")
    save_model(expert_model(), root / "model", INFERENCE)
    about = IndexedModel(name="clip4vla", version="3", content="abc", inference=INFERENCE, clip_seconds=2.0)
    build(folder, root / "index", root / "model", about)
    write_video(folder / "replaced.mp4", 5, 2.0)
    return Index(root / "index")


@pytest.fixture(scope="session")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Embedder:
    return clip4vla.load(save_captioning(tmp_path_factory.mktemp("captioning")))


@pytest.fixture(scope="session")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video, a sound and a picture that the index doesn't have, and a text."""
    folder = tmp_path_factory.mktemp("examples")
    write_video(folder / "video.mp4", 9)
    noise = np.random.default_rng(10).integers(-9000, 9000, (1, RATE)).astype(np.int16)
    (folder / "sound.mp3").write_bytes(encode_mp3(noise, RATE))
    Image.radial_gradient("L").convert("RGB").save(folder / "picture.jpg")
    (folder / "text.mp4").write_text("no video")
    return folder
