"""The published model: its checkpoints to the bit, its numbers within the rounding of float32.

Shapes: four clips of three frames and three tiles, sixteen tokens, embedding width 128.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from benchmarks.parity.losses import TERMS, TOTALS, gradients_of
from benchmarks.parity.model import Models
from benchmarks.parity.reference import Arrays
from clip4vla.model.fusion import pool
from clip4vla.model.pretrained import load_model
from clip4vla.model.published import PUBLISHED_AUDIO, Published, convert, from_published, to_published
from clip4vla.training.objectives import ContrastiveObjective, total_loss
from tests.inference.tiny import expert_model

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
FEATURES = {"rtol": 1e-4, "atol": 2e-5}
SIMILARITIES = {"rtol": 0.0, "atol": 1e-3}
SCALE = torch.tensor([100.0])
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def models(pretrained_state: State, arrays: State) -> Models:
    return Models(pretrained_state, Arrays("model.npz", arrays))


# checkpoints


def assert_same(got: State, expected: State) -> None:
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key].dtype == value.dtype, key
        assert got[key].equal(value), key


def test_a_finetuned_checkpoint_comes_back_bit_for_bit(finetuned: Published, finetuned_state: State) -> None:
    assert finetuned.unused == finetuned.missing == ()
    assert_same(to_published(finetuned.model), finetuned_state)


def test_a_pretraining_checkpoint_leaves_its_untrained_parts(pretrained: Published, pretrained_state: State) -> None:
    taken = {key: value for key, value in pretrained_state.items() if not key.startswith(("cross.", "cls."))}
    assert set(pretrained.unused) == pretrained_state.keys() - taken.keys()
    assert pretrained.missing == ()
    assert pretrained.model.cross_encoder is None
    assert_same(to_published(pretrained.model), taken)


def test_a_checkpoint_without_type_tokens(pretrained_state: State) -> None:
    state = {key: value for key, value in pretrained_state.items() if key.startswith(("clip.", "audio."))}
    del state["audio.visual.control_embedding"]
    state["audio.visual.positional_embedding"] = state["audio.visual.positional_embedding"][:-1]
    published = from_published(state, PUBLISHED_AUDIO, "control -1")
    assert published.missing == ("audio.visual.control_embedding", "audio.visual.positional_embedding[-1]")
    assert_same(to_published(published.model), state)


def test_another_shape_is_named(pretrained_state: State) -> None:
    state = pretrained_state | {"audio.visual.proj": torch.zeros(128, 64)}
    with pytest.raises(ValueError, match=r"audio.proj is \(128, 64\), not \(128, 128\)"):
        from_published(state, PUBLISHED_AUDIO, "somewhere")


def test_a_lacking_tensor_is_named(pretrained_state: State) -> None:
    state = {key: value for key, value in pretrained_state.items() if key != "clip.ln_final.bias"}
    with pytest.raises(ValueError, match=r"somewhere .* lacks clip.ln_final.bias"):
        from_published(state, PUBLISHED_AUDIO, "somewhere")


def test_something_else_is_refused() -> None:
    with pytest.raises(ValueError, match="not a checkpoint of the published code"):
        from_published({"weight": torch.zeros(2)}, PUBLISHED_AUDIO, "somewhere")


@pytest.mark.parametrize("kind", ["pretrain", "retrieval"])
def test_every_key_at_full_size(kind: str) -> None:
    index = json.loads((REFERENCE / "vitb32_state_dict_index.json").read_text())[kind]
    state = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, (shape, dtype) in index.items()
    }
    with torch.device("meta"):
        published = from_published(state, PUBLISHED_AUDIO, kind)
        exported = to_published(published.model)
    assert published.model.architecture.name == "ViT-B-32-quickgelu"
    assert exported.keys() | set(published.unused) == index.keys()
    got = {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in exported.items()}
    assert got == {key: index[key] for key in exported}


def test_a_part_that_the_published_code_lacks_is_named() -> None:
    with pytest.raises(ValueError, match=r"experts\.\S+ has no published name"):
        to_published(expert_model())


def test_a_checkpoint_is_converted_to_a_model_directory(
    pretrained_state: State, pretrained: Published, tmp_path: Path
) -> None:
    torch.save(pretrained_state, tmp_path / "pytorch_model.bin.0")
    converted = convert(tmp_path / "pytorch_model.bin.0", tmp_path / "out", tiles=4)
    assert (converted.unused, converted.missing) == (pretrained.unused, pretrained.missing)
    loaded = load_model(tmp_path / "out")
    assert loaded.audio_config == PUBLISHED_AUDIO.model_copy(update={"tiles": 4})
    assert_same(dict(loaded.state_dict()), dict(pretrained.model.state_dict()))


# features and similarities


@torch.no_grad()
def test_text_and_video(models: Models, arrays: State) -> None:
    one = models.encoded("feat_avg", "0.5")
    torch.testing.assert_close(one.tokens, arrays["enc/text"], **FEATURES)
    torch.testing.assert_close(one.sentences, arrays["pre/pooled_text"], **FEATURES)
    torch.testing.assert_close(one.frames, arrays["enc/visual"], **FEATURES)
    torch.testing.assert_close(pool(*one.video), arrays["pre/pooled_visual"], **FEATURES)


@torch.no_grad()
@pytest.mark.parametrize("control", ["-1", "0", "0.5", "1", "2", "3"])
def test_audio_with_every_token(models: Models, arrays: State, control: str) -> None:
    tiles = models.encoded("feat_avg", control).tiles
    torch.testing.assert_close(tiles, arrays[f"enc/audio_ctrl{control}"], **FEATURES)


@torch.no_grad()
def test_every_token_of_the_audio_transformer(models: Models, arrays: State) -> None:
    one = models.encoded("feat_avg", "2")
    tower, hidden = one.model.audio, one.audio_hidden[:2]
    torch.testing.assert_close(hidden[:1], arrays["enc/audio_transformer_out_ctrl2_first"], **FEATURES)
    projected = tower.ln_post(hidden) @ tower.proj
    torch.testing.assert_close(projected, arrays["enc/audio_hidden_ctrl2_first2"], **FEATURES)


@torch.no_grad()
@pytest.mark.parametrize("variant", ["feat_avg", "feat_avg_ctrl3", "feat_avg_ctrl-1", "sim_plus", "loose_seq"])
def test_similarities(models: Models, arrays: State, variant: str) -> None:
    mode, _, control = variant.partition("_ctrl")
    one = models.encoded(mode, control or "0.5")
    for name in ("t_va", "t_v", "t_a", "a_v", "single_t_v", "single_t_a"):
        torch.testing.assert_close(one.similarity(name), arrays[f"retr/{variant}/{name}"], **SIMILARITIES)


@torch.no_grad()
def test_frames_and_tiles_after_the_sequence_fusion(models: Models, arrays: State) -> None:
    attended = models.encoded("loose_seq", "0.5").attended
    torch.testing.assert_close(torch.cat(attended, dim=1), arrays["retr/loose_seq/cross_out"], **FEATURES)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["feat_avg", "loose_seq"])
def test_a_clip_without_sound(models: Models, arrays: State, mode: str) -> None:
    """The published code averages with zeros and so halves that clip's similarities; here the video stands alone."""
    expected = arrays[f"retr/{mode}_missing_audio1/t_va"].clone()
    expected[:, 1] *= 2
    got = models.encoded(mode, "0.5", missing=True).similarity("t_va")
    torch.testing.assert_close(got, expected, **SIMILARITIES)
    torch.testing.assert_close(got[:, 1], arrays[f"retr/{mode}_missing_audio1/t_v"][:, 1], **SIMILARITIES)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["tight_seq", "cross_align"])
@pytest.mark.parametrize("name", ["t_va", "single_t_v", "single_t_a"])
def test_scores_of_the_cross_encoder(models: Models, arrays: State, mode: str, name: str) -> None:
    scores = models.encoded(mode, "0.5").similarity(name)
    torch.testing.assert_close(scores, arrays[f"retr/{mode}/{name}"], **SIMILARITIES)


# losses and gradients


@pytest.mark.parametrize("preset", TOTALS)
@pytest.mark.parametrize("missing", [False, True])
def test_pretraining_losses_and_gradients(models: Models, arrays: State, preset: str, missing: bool) -> None:
    """There a clip without sound stays in every term, as a zero vector."""
    case = f"pre/{preset}{'_missing_audio1' if missing else ''}"
    one = models.encoded("feat_avg", "2", missing)
    outputs = one.embeddings(augmented=True).tensors()
    terms = ContrastiveObjective(dict.fromkeys(TERMS.values(), 1.0), "sample").losses(outputs, SCALE)
    found = {name: terms[term] for name, term in TERMS.items() if f"{case}/{name}_nce" in arrays}
    assert found.keys() >= {"ta", "va", "tv"}
    for name, value in found.items():
        torch.testing.assert_close(value, arrays[f"{case}/{name}_nce"], rtol=1e-4, atol=1e-5)
    total = total_loss(ContrastiveObjective(TOTALS[preset], "sample").losses(outputs, SCALE))
    torch.testing.assert_close(total, arrays[f"{case}/total"], rtol=1e-4, atol=0)
    if f"{case}/grad_norms" in arrays:
        assert_gradients(one.published, total, arrays, f"{case}/", "pre/grad_names")


@pytest.mark.parametrize("mode", ["feat_avg", "loose_seq"])
def test_finetuning_loss_and_gradients(models: Models, arrays: State, mode: str) -> None:
    """The published fine-tuning loss goes from texts to clips only."""
    one = models.encoded(mode, "0.5")
    loss = F.cross_entropy(one.similarity("t_va"), torch.arange(4))
    torch.testing.assert_close(loss, arrays[f"ft/{mode}_nce"], rtol=1e-4, atol=0)
    if mode == "loose_seq":
        assert_gradients(one.published, loss, arrays, "ft/loose_seq_nce_", "ft/loose_seq_nce_grad_names")


def assert_gradients(published: Published, total: Tensor, arrays: State, case: str, names_key: str) -> None:
    """The norm of every gradient, and the gradients that are kept in full."""
    gradients = gradients_of(published, total)
    with np.load(REFERENCE / "model.npz") as stored:
        names = stored[names_key].tolist()
    norms = dict(zip(names, arrays[f"{case}grad_norms"], strict=True))
    assert norms.pop("clip.logit_scale") == 0
    assert norms.keys() == gradients.keys()
    for key, norm in norms.items():
        torch.testing.assert_close(gradients[key].norm(), norm, rtol=1e-3, atol=1e-6, msg=key)
    prefix = f"{case}grad/"
    full = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    for key, gradient in full.items():
        torch.testing.assert_close(
            gradients[key], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=key
        )
