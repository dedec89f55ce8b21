"""The published model: its checkpoints to the bit, its numbers within what float32 allows.

Shapes: four clips of three frames and three tiles, sixteen words, embedding width 128.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clip4vla.losses.contrastive import info_nce, nt_xent
from clip4vla.model.checkpoints import load_model
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.fusion import pool
from clip4vla.model.published import PUBLISHED_AUDIO, Published, from_published, main, published_name, to_published
from clip4vla.model.towers import encode_words
from clip4vla.params import AudioToken

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
TOKENS: dict[str, AudioToken] = {"-1": "none", "0": "verbal", "0.5": 0.5, "1": "nonverbal", "2": "sample", "3": "both"}
FEATURES = {"rtol": 1e-4, "atol": 2e-5}
SIMILARITIES = {"rtol": 0.0, "atol": 1e-3}
SCALE = torch.tensor([100.0])
State = dict[str, Tensor]


@dataclass(frozen=True)
class Inputs:
    tokens: Tensor
    words: Tensor
    video: Tensor
    video_mask: Tensor
    audio: Tensor
    masked_audio: Tensor
    audio_mask: Tensor
    audio_types: Tensor

    def without_sound_of_clip_1(self, audio_mask: Tensor) -> "Inputs":
        heard = torch.tensor([1.0, 0.0, 1.0, 1.0]).view(4, 1, 1, 1, 1)
        changed = {"audio": self.audio * heard, "masked_audio": self.masked_audio * heard, "audio_mask": audio_mask}
        return Inputs(**(vars(self) | changed))


@pytest.fixture(scope="module")
def inputs(arrays: State) -> Inputs:
    one = {
        key.removeprefix("in/"): value[:, 0]
        for key, value in arrays.items()
        if key.startswith("in/") and value.ndim > 1
    }
    return Inputs(
        tokens=one["input_ids"],
        words=one["attention_mask"].bool(),
        video=one["video"][:, :, 0].float(),
        video_mask=one["video_mask"].bool(),
        audio=one["audio"].float(),
        masked_audio=one["masked_audio"].float(),
        audio_mask=one["audio_mask"].bool(),
        audio_types=one["token_types"],
    )


@pytest.fixture(scope="module")
def inputs_missing(inputs: Inputs, arrays: State) -> Inputs:
    return inputs.without_sound_of_clip_1(arrays["in/audio_mask_missing"][:, 0].bool())


def encode_frames(model: Clip4Vla, inputs: Inputs) -> Tensor:
    return model.clip.visual(inputs.video.flatten(0, 1)).unflatten(0, (4, 3))


# checkpoints


def assert_same(got: State, expected: State) -> None:
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        assert got[key].dtype == value.dtype, key
        assert got[key].equal(value), key


def test_a_finetuned_checkpoint_comes_back_bit_for_bit(finetuned: Published, finetuned_state: State) -> None:
    assert finetuned.unused == finetuned.missing == ()
    assert_same(to_published(finetuned.model, finetuned.scorer), finetuned_state)


def test_a_pretraining_checkpoint_leaves_its_untrained_parts(pretrained: Published, pretrained_state: State) -> None:
    taken = {key: value for key, value in pretrained_state.items() if not key.startswith(("cross.", "cls."))}
    assert set(pretrained.unused) == pretrained_state.keys() - taken.keys()
    assert pretrained.missing == ()
    assert pretrained.scorer is None
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
        exported = to_published(published.model, published.scorer)
    assert published.model.architecture.name == "ViT-B-32-quickgelu"
    assert exported.keys() | set(published.unused) == index.keys()
    got = {key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in exported.items()}
    assert got == {key: index[key] for key in exported}


def test_the_command_writes_a_model_of_ours(
    pretrained_state: State, pretrained: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(pretrained_state, tmp_path / "pytorch_model.bin.0")
    monkeypatch.setattr("sys.argv", ["published", str(tmp_path / "pytorch_model.bin.0"), str(tmp_path / "out")])
    main()
    loaded = load_model(tmp_path / "out")
    assert_same(dict(loaded.state_dict()), dict(pretrained.model.state_dict()))


# features and similarities


@torch.no_grad()
def test_text_and_vision(pretrained: Published, inputs: Inputs, arrays: State) -> None:
    words = encode_words(pretrained.model.clip, inputs.tokens)
    torch.testing.assert_close(words, arrays["enc/text"], **FEATURES)
    sentences = pool(pretrained.model.encode_text(inputs.tokens).unsqueeze(1), torch.ones(4, 1).bool())
    torch.testing.assert_close(sentences, arrays["pre/pooled_text"], **FEATURES)
    frames = encode_frames(pretrained.model, inputs)
    torch.testing.assert_close(frames, arrays["enc/visual"], **FEATURES)
    torch.testing.assert_close(pool(frames, inputs.video_mask), arrays["pre/pooled_visual"], **FEATURES)


@torch.no_grad()
@pytest.mark.parametrize("control", TOKENS)
def test_audio_with_every_token(pretrained: Published, inputs: Inputs, arrays: State, control: str) -> None:
    tiles = pretrained.model.encode_audio(inputs.audio, TOKENS[control], inputs.audio_types)
    torch.testing.assert_close(tiles, arrays[f"enc/audio_ctrl{control}"], **FEATURES)


@torch.no_grad()
def test_every_token_of_the_audio_transformer(pretrained: Published, inputs: Inputs, arrays: State) -> None:
    tower, types = pretrained.model.audio, inputs.audio_types.repeat_interleave(3)
    hidden = tower.hidden(inputs.audio.flatten(0, 1)[:2], "sample", types[:2])
    torch.testing.assert_close(hidden[:1], arrays["enc/audio_transformer_out_ctrl2_first"], **FEATURES)
    projected = tower.ln_post(hidden) @ tower.proj
    torch.testing.assert_close(projected, arrays["enc/audio_hidden_ctrl2_first2"], **FEATURES)


@dataclass(frozen=True)
class Encoded:
    """Unit sentences (4, D), their words (4, 16, D), frames and tiles (4, 3, D), masks."""

    sentences: Tensor
    words: Tensor
    seen: tuple[Tensor, Tensor]
    heard: tuple[Tensor, Tensor]
    unseen: tuple[Tensor, Tensor]

    @staticmethod
    @torch.no_grad()
    def of(model: Clip4Vla, inputs: Inputs, control: str) -> "Encoded":
        return Encoded(
            sentences=F.normalize(model.encode_text(inputs.tokens), dim=1),
            words=encode_words(model.clip, inputs.tokens),
            seen=(encode_frames(model, inputs), inputs.video_mask),
            heard=(model.encode_audio(inputs.audio, TOKENS[control]), inputs.audio_mask),
            unseen=(torch.empty(4, 0, 128), torch.empty(4, 0, dtype=torch.bool)),
        )


@torch.no_grad()
@pytest.mark.parametrize("mode", ["feat_avg", "feat_avg_ctrl3", "feat_avg_ctrl-1", "sim_plus", "loose_seq"])
def test_similarities(pretrained: Published, finetuned: Published, inputs: Inputs, arrays: State, mode: str) -> None:
    model = finetuned.model if mode == "loose_seq" else pretrained.model
    one = Encoded.of(model, inputs, mode.partition("ctrl")[2] or "0.5")
    clips = {
        "t_va": model.fuse(*one.seen, *one.heard),
        "single_t_v": model.fuse(*one.seen, *one.unseen),
        "single_t_a": model.fuse(*one.unseen, *one.heard),
    }
    for name, vectors in clips.items():
        torch.testing.assert_close(SCALE * one.sentences @ vectors.T, arrays[f"retr/{mode}/{name}"], **SIMILARITIES)


@torch.no_grad()
def test_what_the_sequence_fusion_makes_of_frames_and_tiles(
    finetuned: Published, inputs: Inputs, arrays: State
) -> None:
    assert finetuned.model.fusion is not None
    one = Encoded.of(finetuned.model, inputs, "0.5")
    frames, tiles = finetuned.model.fusion(*one.seen, *one.heard)
    torch.testing.assert_close(torch.cat([frames, tiles], dim=1), arrays["retr/loose_seq/cross_out"], **FEATURES)
    video, audio = pool(frames, inputs.video_mask), pool(tiles, inputs.audio_mask)
    pairs = {"t_v": (one.sentences, video), "t_a": (one.sentences, audio), "a_v": (video, audio)}
    for name, (left, right) in pairs.items():
        torch.testing.assert_close(SCALE * left @ right.T, arrays[f"retr/loose_seq/{name}"], **SIMILARITIES)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["feat_avg", "loose_seq"])
def test_a_clip_without_sound(
    pretrained: Published, finetuned: Published, inputs_missing: Inputs, arrays: State, mode: str
) -> None:
    """The published code averages with zeros and so halves that clip's similarities; here vision stands alone."""
    model = finetuned.model if mode == "loose_seq" else pretrained.model
    one = Encoded.of(model, inputs_missing, "0.5")
    expected = arrays[f"retr/{mode}_missing_audio1/t_va"].clone()
    expected[:, 1] *= 2
    got = SCALE * one.sentences @ model.fuse(*one.seen, *one.heard).T
    torch.testing.assert_close(got, expected, **SIMILARITIES)
    torch.testing.assert_close(got[:, 1], arrays[f"retr/{mode}_missing_audio1/t_v"][:, 1], **SIMILARITIES)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["tight_seq", "cross_align"])
def test_cross_attending_scores(finetuned: Published, inputs: Inputs, arrays: State, mode: str) -> None:
    assert finetuned.scorer is not None
    one = Encoded.of(finetuned.model, inputs, "0.5")
    text, text_mask = one.words, inputs.words
    if mode == "tight_seq":
        text, text_mask = one.sentences.unsqueeze(1), torch.ones(4, 1).bool()
    clips = {
        "t_va": (*one.seen, *one.heard),
        "single_t_v": (*one.seen, *one.unseen),
        "single_t_a": (*one.unseen, *one.heard),
    }
    every_text, every_clip = torch.arange(4).repeat_interleave(4), torch.arange(4).repeat(4)
    for name, parts in clips.items():
        pairs = [part[every_clip] for part in parts]
        scores = finetuned.scorer(text[every_text], text_mask[every_text], *pairs).view(4, 4)
        torch.testing.assert_close(scores, arrays[f"retr/{mode}/{name}"], **SIMILARITIES)


# pretraining losses and gradients


def pretraining_terms(model: Clip4Vla, inputs: Inputs) -> dict[str, Tensor]:
    """Every published term. There a clip without sound stays in all of them, as a zero vector."""
    text = F.normalize(model.encode_text(inputs.tokens), dim=1)
    video = pool(encode_frames(model, inputs), inputs.video_mask)
    audio, view = (
        pool(model.encode_audio(tiles, "sample", inputs.audio_types), inputs.audio_mask)
        for tiles in (inputs.audio, inputs.masked_audio)
    )
    return {
        "ta": info_nce(text, audio, SCALE),
        "va": info_nce(video, audio, SCALE),
        "tv": info_nce(text, video, SCALE),
        "aa": nt_xent(audio, view, SCALE),
        "tt": info_nce(text, text, SCALE),
        "vv": info_nce(video, video, SCALE),
    }


PRESETS = {
    "nce": {"ta": 1, "va": 1},
    "nce_ss": {"ta": 1, "va": 1, "aa": 1},
    "tav_nce": {"ta": 1, "va": 2},
    "tav_nce_ss": {"ta": 1, "va": 2, "aa": 1, "tt": 1, "vv": 1},
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("missing", [False, True])
def test_pretraining_losses_and_gradients(
    pretrained: Published, inputs: Inputs, inputs_missing: Inputs, arrays: State, preset: str, missing: bool
) -> None:
    case = f"pre/{preset}{'_missing_audio1' if missing else ''}"
    terms = pretraining_terms(pretrained.model, inputs_missing if missing else inputs)
    for name, value in terms.items():
        if f"{case}/{name}_nce" in arrays:
            torch.testing.assert_close(value, arrays[f"{case}/{name}_nce"], rtol=1e-4, atol=1e-5)
    total = sum(weight * terms[name] for name, weight in PRESETS[preset].items())
    torch.testing.assert_close(total, arrays[f"{case}/total"], rtol=1e-4, atol=0)
    if f"{case}/grad_norms" in arrays:
        assert_gradients(pretrained.model, total, arrays, f"{case}/", "pre/grad_names")


@pytest.mark.parametrize("mode", ["feat_avg", "loose_seq"])
def test_finetuning_loss_and_gradients(
    pretrained: Published, finetuned: Published, inputs: Inputs, arrays: State, mode: str
) -> None:
    """The published fine-tuning loss looks from texts to clips only."""
    model = finetuned.model if mode == "loose_seq" else pretrained.model
    sentences = F.normalize(model.encode_text(inputs.tokens), dim=1)
    tiles = model.encode_audio(inputs.audio, 0.5)
    clips = model.fuse(encode_frames(model, inputs), inputs.video_mask, tiles, inputs.audio_mask)
    loss = F.cross_entropy(SCALE * sentences @ clips.T, torch.arange(4))
    torch.testing.assert_close(loss, arrays[f"ft/{mode}_nce"], rtol=1e-4, atol=0)
    if mode == "loose_seq":
        assert_gradients(model, loss, arrays, "ft/loose_seq_nce_", "ft/loose_seq_nce_grad_names")


def assert_gradients(model: Clip4Vla, total: Tensor, arrays: State, case: str, names_key: str) -> None:
    """The norm of every gradient, and where they are kept whole ones."""
    learned = {published_name(name): p for name, p in model.named_parameters() if p.requires_grad}
    gradients = dict(zip(learned, torch.autograd.grad(total, list(learned.values())), strict=True))
    with np.load(REFERENCE / "model.npz") as stored:
        names = stored[names_key].tolist()
    norms = dict(zip(names, arrays[f"{case}grad_norms"], strict=True))
    for unlearned in ("clip.logit_scale", "similarity_dense.weight", "similarity_dense.bias"):
        assert norms.pop(unlearned, 0) == 0
    assert norms.keys() == gradients.keys()
    for key, norm in norms.items():
        torch.testing.assert_close(gradients[key].norm(), norm, rtol=1e-3, atol=1e-6, msg=key)
    prefix = f"{case}grad/"
    whole = {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
    for key, gradient in whole.items():
        torch.testing.assert_close(
            gradients[key], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()), msg=key
        )
