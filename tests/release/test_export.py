"""An exported folder loads by clip4vla, by open_clip and by Transformers, with the vectors of the registry's model."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import ModelCard

import clip4vla
from clip4vla.model.pretrained import load_model
from clip4vla.model.tokenizer import Tokenizer
from clip4vla.release.export import export_version
from tests.inference.tiny import expert_model, tiny_model, write_video
from tests.release.conftest import NAME, Promote

SENTENCES = ["The sound of a bell", "un perro, ¿no?  it's   loud & &amp; 42!", ""]


@pytest.mark.parametrize("fusion", ["mean", "sequence", "experts"])
def test_the_folder_gives_the_vectors_of_the_registry_and_its_towers_those_of_open_clip(
    fusion: str, promote: Promote, root: Path, tmp_path: Path
) -> None:
    model = expert_model() if fusion == "experts" else tiny_model(fusion)
    version, folder = promote(model), tmp_path / "export"
    export_version(root, NAME, version, folder)
    video = write_video(tmp_path / "clip.mp4", seed=0)
    registered, exported = clip4vla.load(f"models:/{NAME}@champion"), clip4vla.load(folder)
    np.testing.assert_array_equal(exported.encode_text(SENTENCES), registered.encode_text(SENTENCES))
    np.testing.assert_array_equal(exported.encode_media([video]), registered.encode_media([video]))
    check_open_clip(folder)


def check_open_clip(folder: Path) -> None:
    """The towers and the tokenizer that open_clip finds in `folder` do exactly what those of our model do."""
    model = load_model(folder)
    towers, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    towers.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(SENTENCES)
    frames = torch.randint(0, 256, (2, 3, model.image_size, model.image_size), dtype=torch.uint8)
    normalize = preprocess.transforms[-1]
    with torch.inference_mode():
        ours = Tokenizer(model.context_length)(SENTENCES)
        torch.testing.assert_close(tokens[:, : ours.shape[1]], ours, rtol=0, atol=0)
        assert not tokens[:, ours.shape[1] :].any()
        torch.testing.assert_close(towers.encode_text(tokens), model.encode_text(tokens), rtol=0, atol=0)
        images = towers.encode_image(normalize(frames.float() / 255))
        torch.testing.assert_close(images, model.encode_video(frames[:, None])[:, 0], rtol=0, atol=0)


def test_the_tokenizer_in_the_folder_gives_the_same_tokens(promote: Promote, root: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    export_version(root, NAME, promote(tiny_model()), tmp_path / "export")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(tmp_path / "export"))
    sentences = ["The sound of a bell", "un perro, it's loud 42!"]
    expected = open_clip.get_tokenizer("ViT-B-32")(sentences)
    for sentence, tokens in zip(sentences, expected, strict=True):
        assert tokenizer(sentence)["input_ids"] == tokens[tokens != 0].tolist()


def test_the_card_holds_what_the_registry_and_the_runs_know(promote: Promote, root: Path, tmp_path: Path) -> None:
    export_version(root, NAME, promote(tiny_model()), tmp_path / "export", license="mit")
    card = ModelCard.load(tmp_path / "export/README.md")
    assert card.data.license == "mit"
    found = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert found["text_to_clip/both/R@1"] == 50.0
    assert card.data.eval_results[0].dataset_name == "bells"
    for line in (
        "| bells | finetuning | 2.1 | CC-BY-4.0 | https://bells.example |",
        "| mine | finetuning | unknown | unknown | unknown |",
        "| bells | test | 0123456789abcdef |",
        "| fusion | mean |",
        "| mean | 40.0 [30.0, 50.0] |",
        "- pass: text_to_clip/both/R@1 is 50, required: >= 40",
        "at most 2 s of sound at 16,000 Hz",
    ):
        assert line in card.text
    assert "| seen | 50.0 [0.0, 100.0] |" in card.text


def test_the_card_says_what_is_unknown(promote: Promote, root: Path, tmp_path: Path) -> None:
    export_version(root, NAME, promote(tiny_model(), ablation=False), tmp_path / "export")
    card = ModelCard.load(tmp_path / "export/README.md")
    assert card.data.license is None
    assert "The licence of the weights is unknown" in card.text
    assert "Unknown: MLflow has no ablation on this test set." in card.text


def test_only_an_earlier_export_is_replaced(promote: Promote, root: Path, tmp_path: Path) -> None:
    version, folder = promote(tiny_model()), tmp_path / "export"
    export_version(root, NAME, version, folder)
    export_version(root, NAME, version, folder, license="mit")
    assert "license: mit" in (folder / "README.md").read_text()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    with pytest.raises(ValueError, match="mine holds something else than an earlier export"):
        export_version(root, NAME, version, tmp_path / "mine")
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"
