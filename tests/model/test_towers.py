"""Building towers by name, and loading their weights."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from clip4vla.model import towers
from clip4vla.model.clip import Clip
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.towers import ARCHITECTURES, build_clip, find_architecture, load_clip_weights
from clip4vla.rehearsal.weights import write_openai_archive

Build = Callable[..., Clip4Vla]


# architectures


@pytest.mark.parametrize("path", sorted(ARCHITECTURES.glob("*.json")), ids=lambda path: path.stem)
def test_our_architectures_build_and_suit_the_fusion(path: Path) -> None:
    architecture = find_architecture(path.stem, None)
    with torch.device("meta"):
        clip = build_clip(architecture)
    assert clip.logit_scale.shape == (1,)
    assert clip.transformer.width == clip.text_projection.shape[1]
    patches = (architecture.image_size // architecture.config["vision_cfg"]["patch_size"]) ** 2
    assert clip.visual.positional_embedding.shape == (1 + patches, clip.transformer.width)
    assert architecture.context_length == clip.context_length


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ValueError, match=r"'ViT-Z-1'.*such as ViT-.*architectures"):
        find_architecture("ViT-Z-1", None)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("RN50", "a ResNet image tower"),
        ("coca_ViT-B-32", "attentional_pool"),
        ("ViT-B-16-SigLIP", "timm_model_name"),
        ("xlm-roberta-base-ViT-B-32", "hf_model_name"),
        ("ViT-L-14-worldwide", "text_cfg.hf_tokenizer_name"),
        ("ViT-L-14-CLIPA", "vision_cfg.pool_type"),
    ],
)
def test_an_image_tower_that_cannot_initialise_an_audio_tower_is_refused(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=f"{name}.*{reason}.*plain VisionTransformer"):
        find_architecture(name, None)


def test_a_pretrained_tag_decides_whether_quick_gelu_is_used() -> None:
    assert find_architecture("ViT-B-32", "openai").config["quick_gelu"] is True
    assert "quick_gelu" not in find_architecture("ViT-B-32", "laion2b_s34b_b79k").config


# weights


def random_clip(build: Build) -> Clip:
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
    source, target = random_clip(build), build().clip
    write_openai_archive(source.state_dict(), {"input_resolution": 32}, tmp_path / "ViT.pt")
    load_clip_weights(target, build().architecture, str(tmp_path / "ViT.pt"))
    torch.testing.assert_close(dict(target.state_dict()), dict(source.state_dict()))


def test_the_audio_tower_starts_from_the_weights_given(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = random_clip(build)
    torch.save(source.state_dict(), tmp_path / "clip.pt")
    monkeypatch.setattr("clip4vla.model.clip4vla.find_architecture", lambda *_: build().architecture)
    config = build(weights=str(tmp_path / "clip.pt")).config
    model = Clip4Vla(config, build().audio_config)
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


def test_the_error_of_a_failed_download_names_the_file_to_bring(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(_: object) -> str:
        raise OSError("no route to host")

    monkeypatch.setattr("open_clip.pretrained.download_pretrained", unreachable)
    architecture = find_architecture("ViT-B-32", "openai")
    with torch.device("meta"):
        clip = build_clip(architecture)
    with pytest.raises(ValueError, match=r"no route to host.*Bring the checkpoint from http\S+.*model.weights"):
        load_clip_weights(clip, architecture, "openai")


def test_weights_are_looked_for_without_a_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "own.pt"
    own.touch()
    assert towers.find_weights("ViT-B-32", str(own)) == own
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *name: asked.append(name))
    assert towers.find_weights("ViT-B-32", "openai") == "https://huggingface.co/timm/vit_base_patch32_clip_224.openai"
    assert [file for _, file in asked] == ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(own))
    assert towers.find_weights("ViT-B-32", "openai") == own
    monkeypatch.setattr(towers, "_require_tag", lambda *_: {"url": "https://example.org/some/clip.pt"})
    monkeypatch.setenv("HOME", str(tmp_path))
    assert towers.find_weights("ViT-B-32", "some") == "https://example.org/some/clip.pt"
    kept = tmp_path / ".cache/clip/clip.pt"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert towers.find_weights("ViT-B-32", "some") == kept


def test_a_tag_that_an_architecture_does_not_have_is_named_with_those_it_has() -> None:
    with pytest.raises(ValueError, match=r"model\.weights is 'nonesuch'.* nor a tag of ViT-B-32 \(its tags: .*openai"):
        towers.find_weights("ViT-B-32", "nonesuch")
