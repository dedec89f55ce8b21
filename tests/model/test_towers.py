"""Building towers by name, filling them with weights, and the audio tower's type tokens."""

from collections.abc import Callable
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from clip4vla.model import towers
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.towers import ARCHITECTURES, AudioTower, build_clip, find_architecture, load_clip_weights
from clip4vla.params import AudioToken

Build = Callable[..., Clip4Vla]


def tiles() -> Tensor:
    return torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))


# architectures


@pytest.mark.parametrize("path", sorted(ARCHITECTURES.glob("*.json")), ids=lambda path: path.stem)
def test_our_architectures_build_and_suit_the_fusion(path: Path) -> None:
    architecture = find_architecture(path.stem, None)
    with torch.device("meta"):
        clip = build_clip(architecture)
    assert clip.logit_scale.shape == (1,)
    assert clip.transformer.width == clip.text_projection.shape[1]
    assert architecture.image_size == clip.visual.image_size[0]
    assert architecture.context_length == clip.context_length


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ValueError, match=r"'ViT-Z-1'.*stamp-small"):
        find_architecture("ViT-Z-1", None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "a ResNet image tower"),
        ("coca_ViT-B-32", "attentional_pool"),
        ("ViT-B-16-SigLIP", "timm_model_name"),
        ("xlm-roberta-base-ViT-B-32", "hf_model_name"),
    ],
)
def test_an_image_tower_that_cannot_learn_to_hear_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*{reason}.*plain VisionTransformer"):
        find_architecture(name, None)


def test_a_tag_decides_about_quick_gelu() -> None:
    assert find_architecture("ViT-B-32", "openai").config["quick_gelu"] is True
    assert "quick_gelu" not in find_architecture("ViT-B-32", "laion2b_s34b_b79k").config


# weights


def random_clip(build: Build) -> open_clip.CLIP:
    torch.manual_seed(7)
    return build_clip(build().architecture)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_come_from_a_file_with_a_scalar_scale(build: Build, tmp_path: Path, suffix: str) -> None:
    source, target = random_clip(build), build().clip
    state = {key: value.half() for key, value in source.state_dict().items()}
    state["logit_scale"] = state["logit_scale"].reshape(())
    path = tmp_path / f"clip{suffix}"
    if suffix == ".pt":
        torch.save(state, path)
    else:
        save_file(state, path)
    load_clip_weights(target, build().architecture, str(path))
    for key, value in target.state_dict().items():
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, source.state_dict()[key].half().float(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:.*TorchScript")
def test_weights_come_from_openais_archive(build: Build, tmp_path: Path) -> None:
    class Archive(torch.nn.Module):
        def __init__(self, clip: open_clip.CLIP) -> None:
            super().__init__()
            for key, value in clip.state_dict().items():
                self._nest(key.split("."), value)
            self.register_buffer("input_resolution", torch.tensor(32))

        def _nest(self, names: list[str], value: Tensor) -> None:
            module: torch.nn.Module = self
            for name in names[:-1]:
                if not hasattr(module, name):
                    module.add_module(name, torch.nn.Module())
                module = getattr(module, name)
            module.register_parameter(names[-1], torch.nn.Parameter(value))

        def forward(self) -> int:
            return 0

    source, target = random_clip(build), build().clip
    torch.jit.script(Archive(source)).save(str(tmp_path / "ViT.pt"))
    load_clip_weights(target, build().architecture, str(tmp_path / "ViT.pt"))
    torch.testing.assert_close(dict(target.state_dict()), dict(source.state_dict()))


def test_the_audio_tower_starts_from_the_weights_given(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random_clip(build)
    torch.save(source.state_dict(), tmp_path / "clip.pt")
    monkeypatch.setattr("clip4vla.model.clip4vla.find_architecture", lambda *_: build().architecture)
    params = build(weights=str(tmp_path / "clip.pt")).params
    model = Clip4Vla(params, build().audio_params)
    torch.testing.assert_close(model.audio.conv1.weight, source.visual.conv1.weight)
    torch.testing.assert_close(model.audio.proj, source.visual.proj)


def test_weights_of_another_shape_are_named(build: Build, tmp_path: Path) -> None:
    state = random_clip(build).state_dict() | {"visual.proj": torch.zeros(16, 8)}
    del state["ln_final.bias"]
    torch.save(state, tmp_path / "clip.pt")
    with pytest.raises(ValueError, match=r"clip.pt .*lacks ln_final.bias.*visual.proj is \(16, 8\), not \(16, 16\)"):
        load_clip_weights(build().clip, build().architecture, str(tmp_path / "clip.pt"))


def test_neither_a_file_nor_a_tag(build: Build) -> None:
    with pytest.raises(ValueError, match=r"'nowhere.pt'.*no such file, nor a tag of tiny"):
        load_clip_weights(build().clip, build().architecture, "nowhere.pt")


def test_weights_that_cannot_be_downloaded_say_what_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr(towers, "download_pretrained", unreachable)
    architecture = find_architecture("ViT-B-32", "openai")
    with torch.device("meta"):
        clip = build_clip(architecture)
    with pytest.raises(ValueError, match=r"no route to host.*Bring the checkpoint from http\S+.*model.weights"):
        load_clip_weights(clip, architecture, "openai")


# the audio tower


def test_the_audio_tower_is_the_image_towers_twin(build: Build) -> None:
    model = build()
    torch.testing.assert_close(model.audio(tiles(), "none"), model.clip.visual(tiles()))
    copied = [p.data_ptr() for p in model.audio.parameters()]
    assert not set(copied) & {p.data_ptr() for p in model.clip.parameters()}


@pytest.mark.parametrize(
    ("token", "same"), [("verbal", 0.0), ("nonverbal", 1.0)], ids=["verbal is 0", "nonverbal is 1"]
)
def test_kinds_are_the_ends_of_the_mixture(build: Build, token: AudioToken, same: float) -> None:
    tower = build().audio
    torch.testing.assert_close(tower(tiles(), token), tower(tiles(), same))
    assert not torch.allclose(tower(tiles(), same), tower(tiles(), 1 - same), atol=1e-4)


def test_a_sample_listens_for_its_own_kind_and_for_both_where_unknown(build: Build) -> None:
    tower = build().audio
    got = tower(tiles(), "sample", torch.tensor([0, 1, -1, -1, 1, 0]))
    kinds: list[AudioToken] = ["verbal", "nonverbal", 0.5, 0.5, "nonverbal", "verbal"]
    for row, kind in enumerate(kinds):
        torch.testing.assert_close(got[row], tower(tiles()[row : row + 1], kind)[0], rtol=1e-4, atol=1e-5)


def test_type_tokens_stand_at_the_end_and_share_the_last_position(build: Build) -> None:
    tower = build().audio
    assert tower.positional_embedding.shape == (1 + 4 + 1, 16)
    lengths = {token: tower.hidden(tiles(), token).shape[1] for token in ("none", "verbal", "both")}
    assert lengths == {"none": 5, "verbal": 6, "both": 7}
    with torch.no_grad():
        tower.type_embedding[1] = tower.type_embedding[0]
    first, second = tower.hidden(tiles(), "both")[:, -2:].unbind(1)
    torch.testing.assert_close(first, second)


def test_sample_without_types_is_refused(build: Build) -> None:
    with pytest.raises(ValueError, match="'sample' needs"):
        build().audio(tiles(), "sample")


def test_new_rows_are_as_large_as_clips_own() -> None:
    torch.manual_seed(0)
    tower = AudioTower(build_clip(find_architecture("stamp-small", None)).visual)
    width = tower.type_embedding.shape[1]
    assert tower.type_embedding.std().item() == pytest.approx(width**-0.5, rel=0.1)
    assert tower.positional_embedding[-1].std().item() == pytest.approx(width**-0.5, rel=0.2)
