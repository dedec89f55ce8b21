"""The caption decoder: cached against uncached, alone against in a batch, its loss against one written out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from clip4vla.batch import Batch
from clip4vla.model.beam import END, START
from clip4vla.model.caption import CaptionDecoder, Memory
from clip4vla.model.checkpoints import load_model, save_model
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.percepts import Percepts
from clip4vla.model.text import Tokenizer
from clip4vla.params import AudioParams
from tests.model.conftest import AUDIO, MODEL, TINY
from tests.model.conftest import END as END_TOKEN

START_TOKEN = 62
VOCABULARY = torch.tensor([START_TOKEN, END_TOKEN, *range(1, 40)])
LENGTH = 10


@pytest.fixture(params=["mean", "sequence"])
def model(request: pytest.FixtureRequest) -> Clip4Vla:
    """A tiny model that writes, with weights large enough that captions differ."""
    torch.manual_seed(0)
    model = Clip4Vla(MODEL.model_copy(update={"fusion": request.param}), AUDIO, TINY, VOCABULARY).eval()
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.7 * torch.randn_like(parameter))
        model.decoder.positional_embedding.mul_(5.0)  # a word that scores with its own embedding would be repeated
    return model


@pytest.fixture
def percepts(model: Clip4Vla, batch: Batch) -> Percepts:
    with torch.no_grad():
        return model.perceive(batch, audio_token="both", modalities="both")


@pytest.fixture
def memory(model: Clip4Vla, percepts: Percepts) -> Memory:
    with torch.no_grad():
        return model._remember(model.decoder, percepts)


def captions(batch: Batch, sentences: int = 2) -> Tensor:
    """(B, K, L) captions of the vocabulary, of different lengths; zeros follow the end."""
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(1, 40, (len(batch), sentences, 9), generator=generator)
    tokens[..., 0] = START_TOKEN
    for row in range(len(batch)):
        for sentence in range(sentences):
            end = 3 + row + sentence
            tokens[row, sentence, end], tokens[row, sentence, end + 1 :] = END_TOKEN, 0
    return tokens


@torch.no_grad()
def uncached(decoder: CaptionDecoder, memory: Memory, length: int) -> Tensor:
    """The likeliest word after all words so far, each time from the beginning."""
    said = torch.full((len(memory.features), 1), START_TOKEN)
    for _ in range(length):
        word = VOCABULARY[decoder(said, memory)[:, -1].argmax(1)]
        ended = (said == END_TOKEN).any(1)
        said = torch.cat([said, torch.where(ended, END_TOKEN, word).unsqueeze(1)], dim=1)
    return said[:, 1:]


def written(decoder: CaptionDecoder, memory: Memory, beam: int = 1) -> Tensor:
    said = decoder.write(memory, beam=beam, length=LENGTH, length_penalty=1.0)
    return F.pad(said, (0, LENGTH - said.shape[1]), value=END_TOKEN)


def test_cached_decoding_says_what_uncached_does_token_for_token(model: Clip4Vla, memory: Memory) -> None:
    said = written(model.decoder, memory)
    assert said.tolist() == uncached(model.decoder, memory, LENGTH).tolist()
    assert len({tuple(row) for row in said.tolist()}) == len(said)


def test_cached_log_probabilities_are_the_uncached_ones(model: Clip4Vla, memory: Memory, batch: Batch) -> None:
    tokens = captions(batch, 1)[:, 0, :4]
    decoder = model.decoder
    with torch.no_grad():
        whole = decoder(tokens, memory)
        seen, past, parts = decoder._look(memory, 1), None, []
        for place in range(tokens.shape[1]):
            hidden, past = decoder._read(decoder.places[tokens[:, place : place + 1]], seen, past)
            parts.append(decoder._score(hidden))
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


@pytest.mark.parametrize("beam", [1, 3])
def test_neither_batch_nor_order_changes_a_caption(model: Clip4Vla, memory: Memory, beam: int) -> None:
    together = written(model.decoder, memory, beam)
    for row in range(len(together)):
        alone = Memory(memory.features[row : row + 1], memory.mask[row : row + 1])
        assert written(model.decoder, alone, beam).tolist() == together[row : row + 1].tolist()
    backwards = Memory(memory.features.flip(0), memory.mask.flip(0))
    assert written(model.decoder, backwards, beam).flip(0).tolist() == together.tolist()


@pytest.mark.parametrize("model", ["mean"], indirect=True)  # a sequence fusion knows places, which padding shifts
def test_padding_of_frames_and_tiles_changes_no_caption(model: Clip4Vla, percepts: Percepts) -> None:
    padded = replace(
        percepts,
        frames=F.pad(percepts.frames, (0, 0, 0, 2), value=5.0),
        video_mask=F.pad(percepts.video_mask, (0, 2)),
        tiles=F.pad(percepts.tiles, (0, 0, 0, 1), value=-3.0),
        audio_mask=F.pad(percepts.audio_mask, (0, 1)),
    )
    with torch.no_grad():
        before, after = model._remember(model.decoder, percepts), model._remember(model.decoder, padded)
    assert written(model.decoder, after, 3).tolist() == written(model.decoder, before, 3).tolist()


def test_what_is_hidden_changes_no_caption_and_what_is_seen_does(model: Clip4Vla, percepts: Percepts) -> None:
    other = replace(percepts, tiles=percepts.tiles.flip(0).roll(1, 1) * 3)
    with torch.no_grad():
        seen = [written(model.decoder, model._remember(model.decoder, p.only("vision"))) for p in (percepts, other)]
        both = [
            model.decoder(torch.full((4, 1), START_TOKEN), model._remember(model.decoder, p)) for p in (percepts, other)
        ]
    assert seen[0].tolist() == seen[1].tolist()
    assert not torch.allclose(both[0][0], both[1][0])


@pytest.mark.parametrize(("modalities", "lengths"), [("vision", (2, 0)), ("audio", (0, 2)), ("both", (2, 2))])
def test_only_what_is_asked_for_is_looked_at(
    model: Clip4Vla, batch: Batch, modalities: str, lengths: tuple[int, int]
) -> None:
    percepts = model.perceive(batch, audio_token="both", modalities=modalities)
    assert (percepts.frames.shape[1], percepts.tiles.shape[1]) == lengths
    assert written(model.decoder, model._remember(model.decoder, percepts)).shape == (4, LENGTH)


def test_a_clip_without_anything_has_a_caption_without_nan(model: Clip4Vla, percepts: Percepts) -> None:
    nothing = replace(percepts, **{name: torch.zeros(4, 2, dtype=torch.bool) for name in ("video_mask", "audio_mask")})
    with torch.no_grad():
        logits = model.decoder(torch.full((4, 1), START_TOKEN), model._remember(model.decoder, nothing))
    assert logits.isfinite().all()
    torch.testing.assert_close(logits, logits[:1].expand_as(logits))


def test_the_loss_is_the_smoothed_cross_entropy_of_each_word_and_end(
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
                words = sentence[: sentence.index(END_TOKEN) + 1]
                log_p = model.decoder(torch.tensor([words[:-1]]), alone)[0].log_softmax(1)
                for step, word in enumerate(words[1:]):
                    target = torch.full((len(VOCABULARY),), smoothing / len(VOCABULARY))
                    target[places[word]] += 1 - smoothing
                    terms.append(-(target * log_p[step]).sum())
            expected.append(torch.stack(terms).mean())
        found = model.decoder.loss(tokens, memory, smoothing)
        torch.testing.assert_close(found, torch.stack(expected))
        longer = F.pad(tokens, (0, 2))
        torch.testing.assert_close(model.decoder.loss(longer, memory, smoothing), found)


def test_it_starts_as_the_text_tower(build: Callable[..., Clip4Vla]) -> None:
    """Without the memory's part, hidden states are the tower's, and the words' scores its embedding's rows."""
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
        model.set_grad_checkpointing(checkpointing)
        assert decoder.grad_checkpointing is checkpointing
        decoder.loss(captions(batch), memory, 0.1).sum().backward()
        gradients.append([p.grad.clone() for p in decoder.parameters() if p.grad is not None])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_modality_is_hidden_in_about_the_asked_for_fraction_and_never_the_only_one() -> None:
    clips = 4000
    percepts = Percepts(
        torch.zeros(clips, 1, 4),
        torch.arange(clips).unsqueeze(1) % 4 != 0,
        torch.zeros(clips, 2, 4),
        (torch.arange(clips) % 4 != 1).unsqueeze(1).expand(-1, 2),
    )
    torch.manual_seed(0)
    dropped = percepts.drop(0.4)
    sees, hears = dropped.video_mask.any(1), dropped.audio_mask.any(1)
    assert (sees | hears).all()
    whole = torch.arange(clips) % 4 >= 2
    assert torch.equal(sees[~whole], percepts.video_mask.any(1)[~whole])
    assert abs((~sees)[whole].float().mean() - 0.2) < 0.03
    assert abs((~hears)[whole].float().mean() - 0.2) < 0.03
    assert torch.equal(percepts.drop(0.0).video_mask, percepts.video_mask)


def test_it_is_saved_with_its_vocabulary_and_writes_the_same(
    model: Clip4Vla, memory: Memory, percepts: Percepts, tmp_path: Path
) -> None:
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    with torch.no_grad():
        again = loaded._remember(loaded.decoder, percepts)
    assert written(loaded.decoder, again, 3).tolist() == written(model.decoder, memory, 3).tolist()
    assert loaded.twin().state_dict().keys() == model.state_dict().keys()


def test_a_model_without_a_decoder_says_so(build: Callable[..., Clip4Vla], batch: Batch) -> None:
    model = build()
    with pytest.raises(ValueError, match="writes no captions: fine-tune it for captioning"):
        model.caption_loss(batch.tokens, model.perceive(batch, audio_token="both", modalities="both"), 0.1)


def test_captions_longer_than_the_decoder_are_refused(model: Clip4Vla, memory: Memory) -> None:
    with pytest.raises(ValueError, match="captions of 12 words and a start don't fit the decoder, which has 12"):
        model.decoder.write(memory, beam=1, length=12, length_penalty=1.0)


def test_text_is_frozen_and_the_rest_is_not(build: Callable[[AudioParams], Clip4Vla]) -> None:
    model = build()
    model.freeze_text()
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"clip", "audio"}
    assert all(name.startswith(("clip.visual.", "audio.")) for name in trained)


def test_sentences_come_back_from_their_tokens() -> None:
    tokenizer = Tokenizer("stamp-small", 24)
    sentences = ["a picture of a T-shirt!", "the words un ñandú"]
    vocabulary = tokenizer.vocabulary(sentences)
    assert vocabulary[START] == tokenizer.ends[0]
    assert vocabulary[END] == tokenizer.ends[1]
    assert vocabulary[2:].tolist() == sorted(set(vocabulary[2:].tolist()))
    tokens = tokenizer(sentences)
    assert [tokenizer.decode(row) for row in tokens] == ["a picture of a t - shirt !", "the words un ñandú"]
    assert set(tokens.flatten().tolist()) - {0} <= set(vocabulary.tolist())
    full = tokenizer.full_vocabulary()
    assert full[:2].tolist() == list(tokenizer.ends)
    assert sorted(full.tolist()) == list(range(49408))
