"""A saved model is the same when it is loaded, by an earlier version saved or not; a damaged one is an error."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clip4vla.clips.batch import Batch
from clip4vla.config import ClipsConfig, GenerationConfig, InferenceConfig
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.pretrained import load_model, read_inference_config, save_model
from clip4vla.records import CONFIG_FILE, WEIGHTS_FILE
from tests.model.conftest import TINY

Build = Callable[..., Clip4Vla]


@pytest.mark.parametrize("fusion", ["mean", "sequence"])
def test_a_saved_model_has_the_same_embeddings(build: Build, batch: Batch, tmp_path: Path, fusion: str) -> None:
    model = build(fusion=fusion, audio_token=0.25, weights="/elsewhere/clip.pt").eval()
    save_model(model, tmp_path / "model")
    torch.manual_seed(99)
    loaded = load_model(tmp_path / "model")
    assert loaded.config == model.config
    assert loaded.audio_config == model.audio_config
    assert loaded.architecture == model.architecture
    assert not loaded.training
    with torch.no_grad():
        one, other = (m(batch, audio_token=0.25, names=("text", "both")) for m in (model, loaded))
    assert one.text.equal(other.text)
    assert one.both.equal(other.both)


def test_how_media_are_read_is_saved_with_the_model(build: Build, tmp_path: Path) -> None:
    generation = GenerationConfig(modalities="video", beam=2)
    inference = InferenceConfig(clips=ClipsConfig(frames=4, size=72), frames=2, max_tokens=12, generation=generation)
    save_model(build(), tmp_path / "with", inference)
    assert read_inference_config(tmp_path / "with") == inference
    save_model(build(), tmp_path / "without")
    assert read_inference_config(tmp_path / "without") is None


EARLIER_CONFIG = {
    "format": "clip4vla/1",
    "model": {
        "architecture": "tiny",
        "weights": None,
        "fusion": "sequence",
        "fusion_layers": 2,
        "audio_token": "both",
        "temperature": "learned",
    },
    "audio": {
        "sample_rate": 16000,
        "n_fft": 512,
        "hop": None,
        "tiles": 2,
        "recipe": "masked",
        "freq_mask_fraction": 0.1,
        "time_mask_fraction": 0.15,
        "mask_width": 9,
    },
    "architecture": {
        "name": "tiny",
        "config": TINY.config,
        "image_mean": list(TINY.image_mean),
        "image_std": list(TINY.image_std),
    },
}
"""config.json as the version before 0.1.0 wrote it."""


def test_a_model_directory_of_an_earlier_version_loads(build: Build, tmp_path: Path) -> None:
    model = build(fusion="sequence", has_cross_encoder=True)
    torch.nn.init.ones_(model.cross_encoder.similarity.weight)
    (tmp_path / CONFIG_FILE).write_text(json.dumps(EARLIER_CONFIG))
    earlier = {name.replace("cross_encoder.", "scorer."): value for name, value in model.state_dict().items()}
    assert {"scorer.similarity.weight", "scorer.similarity.bias"} <= earlier.keys()
    save_file(earlier, tmp_path / WEIGHTS_FILE)
    loaded = load_model(tmp_path)
    assert (loaded.config, loaded.audio_config, loaded.architecture) == (
        *(model.config, model.audio_config, model.architecture),
    )
    torch.testing.assert_close(dict(loaded.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    assert read_inference_config(tmp_path) is None


def test_nothing_half_written_is_left_beside_it(build: Build, tmp_path: Path) -> None:
    save_model(build(), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]


@pytest.fixture
def saved(build: Build, tmp_path: Path) -> Path:
    save_model(build(), tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_a_missing_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(ValueError, match=f"{name} is missing"):
        load_model(saved)


def test_missing_unknown_and_misshapen_tensors_are_named(saved: Path) -> None:
    tensors = load_file(saved / WEIGHTS_FILE)
    del tensors["audio.ln_post.bias"]
    tensors |= {"audio.extra": torch.zeros(1), "audio.proj": torch.zeros(16, 3)}
    save_file(tensors, saved / WEIGHTS_FILE)
    expected = r"lacks audio.ln_post.bias; it has unknown audio.extra; audio.proj is \(16, 3\), not \(16, 16\)"
    with pytest.raises(ValueError, match=expected):
        load_model(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other/1"}, "other/1"),
        ({"model": {"fusion": "mean"}}, "architecture"),
        ({"audio": None}, "config"),
        ({"inference": {"frames": 1}}, "max_tokens"),
    ],
)
def test_another_config_is_refused(saved: Path, change: dict, message: str) -> None:
    config = json.loads((saved / CONFIG_FILE).read_text())
    (saved / CONFIG_FILE).write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        load_model(saved)
