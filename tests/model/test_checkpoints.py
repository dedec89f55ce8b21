"""A saved model is the same model; a damaged one is no model."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clip4vla.batch import Batch
from clip4vla.model.checkpoints import CONFIG_FILE, WEIGHTS_FILE, load_model, save_model
from clip4vla.model.clip4vla import Clip4Vla

Build = Callable[..., Clip4Vla]


@pytest.mark.parametrize("fusion", ["mean", "sequence"])
def test_a_saved_model_gives_the_same_features(build: Build, batch: Batch, tmp_path: Path, fusion: str) -> None:
    model = build(fusion=fusion, audio_token=0.25, weights="/elsewhere/clip.pt").eval()
    save_model(model, tmp_path / "model")
    torch.manual_seed(99)
    loaded = load_model(tmp_path / "model")
    assert loaded.params == model.params
    assert loaded.audio_params == model.audio_params
    assert loaded.architecture == model.architecture
    assert not loaded.training
    with torch.no_grad():
        one, other = (m(batch, audio_token=0.25, views=("text", "both")) for m in (model, loaded))
    assert one.text.equal(other.text)
    assert one.both.equal(other.both)


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
    tensors |= {"audio.nose": torch.zeros(1), "audio.proj": torch.zeros(16, 3)}
    save_file(tensors, saved / WEIGHTS_FILE)
    expected = r"lacks audio.ln_post.bias; it has unknown audio.nose; audio.proj is \(16, 3\), not \(16, 16\)"
    with pytest.raises(ValueError, match=expected):
        load_model(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": "other/1"}, "other/1"), ({"model": {"fusion": "mean"}}, "fusion_layers"), ({"audio": None}, "config")],
)
def test_another_config_is_refused(saved: Path, change: dict, message: str) -> None:
    config = json.loads((saved / CONFIG_FILE).read_text())
    (saved / CONFIG_FILE).write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        load_model(saved)
