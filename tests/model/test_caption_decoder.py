"""The caption decoder: cached against uncached, alone against in a batch, its loss against one written out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clip4vla.clips.batch import Batch
from clip4vla.config import AudioConfig
from clip4vla.model.caption_decoder import CaptionDecoder, Memory
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.media_features import MediaFeatures
from clip4vla.model.pretrained import load_model, save_model
from clip4vla.records import Modality
from tests.model.conftest import AUDIO, MODEL, TINY
from tests.model.conftest import END as END_TOKEN

START_TOKEN = 62
VOCABULARY = torch.tensor([START_TOKEN, END_TOKEN, *range(1, 40)])
LENGTH = 10


@pytest.fixture(params=["mean", "sequence"])
def model(request: pytest.FixtureRequest) -> Clip4Vla:
    """A tiny model with a caption decoder, whose weights are large enough that captions differ."""
    torch.manual_seed(0)
    model = Clip4Vla(MODEL.model_copy(update={"fusion": request.param}), AUDIO, TINY, VOCABULARY).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.7 * torch.randn_like(parameter))
        model.decoder.positional_embedding.mul_(5.0)  # a token that scores with its own embedding would be repeated
    return model


@pytest.fixture
def media(model: Clip4Vla, batch: Batch) -> MediaFeatures:
    with torch.no_grad():
        return model.encode_media(batch, audio_token="both", modalities="both")


@pytest.fixture
def memory(model: Clip4Vla, media: MediaFeatures) -> Memory:
    with torch.no_grad():
        return model._build_memory(model.decoder, media)


def captions(batch: Batch, per_clip: int = 2) -> Tensor:
    """(B, K, L) captions of the vocabulary, of different lengths; zeros follow the end."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, 40, (len(batch), per_clip, 9), generator=generator)
    tokens[..., 0] = START_TOKEN
    for row in range(len(batch)):
        for sentence in range(per_clip):
            end = 3 + row + sentence
            tokens[row, sentence, end], tokens[row, sentence, end + 1 :] = END_TOKEN, 0
    return tokens


@torch.no_grad()
def uncached(decoder: CaptionDecoder, memory: Memory, length: int) -> Tensor:
    """The likeliest token after all tokens so far, each time from the beginning."""
    tokens = torch.full((len(memory.features), 1), START_TOKEN)
    for _ in range(length):
        following = VOCABULARY[decoder(tokens, memory)[:, -1].argmax(1)]
        ended = (tokens == END_TOKEN).any(1)
        tokens = torch.cat([tokens, torch.where(ended, END_TOKEN, following).unsqueeze(1)], dim=1)
    return tokens[:, 1:]


def generated(decoder: CaptionDecoder, memory: Memory, beam: int = 1) -> Tensor:
    tokens = decoder.generate(memory, beam=beam, length=LENGTH, length_penalty=1.0)
    return F.pad(tokens, (0, LENGTH - tokens.shape[1]), value=END_TOKEN)


def test_cached_decoding_equals_uncached_decoding_token_for_token(model: Clip4Vla, memory: Memory) -> None:
    found = generated(model.decoder, memory)
    assert found.tolist() == uncached(model.decoder, memory, LENGTH).tolist()
    assert len({tuple(row) for row in found.tolist()}) == len(found)


def test_cached_log_probabilities_are_the_uncached_ones(model: Clip4Vla, memory: Memory, batch: Batch) -> None:
    tokens = captions(batch, 1)[:, 0, :4]
    decoder = model.decoder
    with torch.no_grad():
        expected = decoder(tokens, memory)
        memory_kv, past, parts = decoder._project_memory(memory, 1), None, []
        for place in range(tokens.shape[1]):
            hidden, past = decoder._decode(decoder.places[tokens[:, place : place + 1]], memory_kv, past)
            parts.append(decoder._logits(hidden))
    torch.testing.assert_close(torch.cat(parts, dim=1), expected)


@pytest.mark.parametrize("beam", [1, 3])
def test_neither_batch_nor_order_changes_a_caption(model: Clip4Vla, memory: Memory, beam: int) -> None:
    together = generated(model.decoder, memory, beam)
    for row in range(len(together)):
        alone = Memory(memory.features[row : row + 1], memory.mask[row : row + 1])
        assert generated(model.decoder, alone, beam).tolist() == together[row : row + 1].tolist()
    backwards = Memory(memory.features.flip(0), memory.mask.flip(0))
    assert generated(model.decoder, backwards, beam).flip(0).tolist() == together.tolist()


@pytest.mark.parametrize("model", ["mean"], indirect=True)  # a sequence fusion has positions, which padding shifts
def test_padding_of_frames_and_tiles_changes_no_caption(model: Clip4Vla, media: MediaFeatures) -> None:
    padded = replace(
        media,
        frames=F.pad(media.frames, (0, 0, 0, 2), value=5.0),
        video_mask=F.pad(media.video_mask, (0, 2)),
        tiles=F.pad(media.tiles, (0, 0, 0, 1), value=-3.0),
        audio_mask=F.pad(media.audio_mask, (0, 1)),
    )
    with torch.no_grad():
        before, after = model._build_memory(model.decoder, media), model._build_memory(model.decoder, padded)
    assert generated(model.decoder, after, 3).tolist() == generated(model.decoder, before, 3).tolist()


def test_a_hidden_modality_changes_no_caption_and_a_present_one_does(model: Clip4Vla, media: MediaFeatures) -> None:
    other = replace(media, tiles=media.tiles.flip(0).roll(1, 1) * 3)
    with torch.no_grad():
        hidden = [model._build_memory(model.decoder, each.only("video")) for each in (media, other)]
        present = [model._build_memory(model.decoder, each) for each in (media, other)]
        captions_of_hidden = [generated(model.decoder, each).tolist() for each in hidden]
        logits = [model.decoder(torch.full((4, 1), START_TOKEN), each) for each in present]
    assert captions_of_hidden[0] == captions_of_hidden[1]
    assert not torch.allclose(logits[0][0], logits[1][0])


@pytest.mark.parametrize(("modalities", "lengths"), [("video", (2, 0)), ("audio", (0, 2)), ("both", (2, 2))])
def test_only_the_given_modalities_are_encoded(
    model: Clip4Vla, batch: Batch, modalities: Modality, lengths: tuple[int, int]
) -> None:
    media = model.encode_media(batch, audio_token="both", modalities=modalities)
    assert (media.frames.shape[1], media.tiles.shape[1]) == lengths
    assert generated(model.decoder, model._build_memory(model.decoder, media)).shape == (4, LENGTH)


def test_a_clip_without_anything_has_a_caption_without_nan(model: Clip4Vla, media: MediaFeatures) -> None:
    nothing = replace(media, **{name: torch.zeros(4, 2, dtype=torch.bool) for name in ("video_mask", "audio_mask")})
    with torch.no_grad():
        logits = model.decoder(torch.full((4, 1), START_TOKEN), model._build_memory(model.decoder, nothing))
    assert logits.isfinite().all()
    torch.testing.assert_close(logits, logits[:1].expand_as(logits))


def test_the_loss_is_the_smoothed_cross_entropy_of_each_token_and_end(
    model: Clip4Vla, memory: Memory, batch: Batch
) -> None:
    tokens, smoothing = captions(batch), 0.1
    places = {token: place for place, token in enumerate(VOCABULARY.tolist())}
    expected = []
    with torch.no_grad():
        for row in range(len(batch)):
            alone = Memory(memory.features[row : row + 1], memory.mask[row : row + 1])
            terms = []
            for sentence in tokens[row].tolist():
                ended = sentence[: sentence.index(END_TOKEN) + 1]
                log_p = model.decoder(torch.tensor([ended[:-1]]), alone)[0].log_softmax(1)
                for step, token in enumerate(ended[1:]):
                    target = torch.full((len(VOCABULARY),), smoothing / len(VOCABULARY))
                    target[places[token]] += 1 - smoothing
                    terms.append(-(target * log_p[step]).sum())
            expected.append(torch.stack(terms).mean())
        found = model.decoder.loss(tokens, memory, smoothing)
        torch.testing.assert_close(found, torch.stack(expected))
        longer = F.pad(tokens, (0, 2))
        torch.testing.assert_close(model.decoder.loss(longer, memory, smoothing), found)


def test_it_starts_as_the_text_tower(build: Callable[..., Clip4Vla]) -> None:
    """Without attention to the memory, hidden states are the tower's, and logits products with its embedding's rows."""
    clip = build().clip
    decoder = CaptionDecoder(clip, VOCABULARY).eval()
    with torch.no_grad():
        for block in decoder.blocks:
            block.cross_attention.output.weight.zero_()
            block.cross_attention.output.bias.zero_()
        tokens = torch.tensor([[START_TOKEN, 5, 7, 11]])
        memory = Memory(torch.randn(1, 3, 16), torch.ones(1, 3, dtype=torch.bool))
        hidden = clip.token_embedding(tokens) + clip.positional_embedding[:4]
        hidden = clip.ln_final(clip.transformer(hidden, attn_mask=clip.attn_mask[:4, :4]))
        expected = hidden @ clip.token_embedding.weight[VOCABULARY].T
        torch.testing.assert_close(decoder(tokens, memory), expected)


def test_the_head_is_the_embedding(model: Clip4Vla, memory: Memory, batch: Batch) -> None:
    decoder = model.decoder
    decoder.loss(captions(batch), memory, 0.0).sum().backward()
    never_read = decoder.places[39] if 39 not in captions(batch) else decoder.places[END_TOKEN]
    assert decoder.embedding.weight.grad[never_read].abs().sum() > 0
    assert sum(p.numel() == VOCABULARY.numel() * 16 for p in decoder.parameters()) == 1


def test_recomputed_activations_have_the_same_gradient(model: Clip4Vla, memory: Memory, batch: Batch) -> None:
    decoder, gradients = model.decoder.train(), []
    for checkpointing in (False, True):
        decoder.zero_grad()
        model.recompute(model.blocks if checkpointing else 0)
        assert decoder.recomputed == (len(decoder.blocks) if checkpointing else 0)
        decoder.loss(captions(batch), memory, 0.1).sum().backward()
        gradients.append([p.grad.clone() for p in decoder.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_it_is_saved_with_its_vocabulary_and_generates_the_same(
    model: Clip4Vla, memory: Memory, media: MediaFeatures, tmp_path: Path
) -> None:
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    with torch.no_grad():
        again = loaded._build_memory(loaded.decoder, media)
    assert generated(loaded.decoder, again, 3).tolist() == generated(model.decoder, memory, 3).tolist()
    assert loaded.with_initial_weights().state_dict().keys() == model.state_dict().keys()


def test_a_model_without_a_decoder_has_no_caption_loss(build: Callable[..., Clip4Vla], batch: Batch) -> None:
    model = build()
    with pytest.raises(ValueError, match="no caption decoder: fine-tune it for captioning"):
        model.caption_loss(batch.tokens, model.encode_media(batch, audio_token="both", modalities="both"), 0.1)


def test_captions_longer_than_the_decoder_are_refused(model: Clip4Vla, memory: Memory) -> None:
    with pytest.raises(ValueError, match="captions of 12 tokens and a start don't fit the decoder, which has 12"):
        model.decoder.generate(memory, beam=1, length=12, length_penalty=1.0)


def test_only_the_text_tower_is_frozen(build: Callable[[AudioConfig], Clip4Vla]) -> None:
    model = build()
    model.freeze_text()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"clip", "audio"}
    assert all(name.startswith(("clip.visual.", "audio.")) for name in trained)
