"""Token ids of sentences, against the published ones, and back."""

import json
from pathlib import Path

import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clip4vla.model.beam_search import END, START
from clip4vla.model.tokenizer import Tokenizer

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
PUBLISHED_PADDING = 49410
OPEN_CLIP = open_clip.get_tokenizer("ViT-B-32")


def test_published_token_ids() -> None:
    facts = json.loads((REFERENCE / "text.json").read_text())
    tokenizer = Tokenizer(32)
    for case in facts["retrieval_text"]:
        expected = [0 if token == PUBLISHED_PADDING else token for token in case["input_ids"]]
        tokens = tokenizer([case["text"], " ".join(["word"] * 40)])  # the second fills all places
        assert tokens[0].tolist() == expected
    for case in facts["tokenize"]:
        tokens = tokenizer([case["text"]])[0]
        assert tokens[1 : 1 + len(case["ids"])].tolist() == case["ids"]


def test_sentences_are_decoded_from_their_tokens() -> None:
    tokenizer = Tokenizer(24)
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


def test_an_exclamation_mark_is_a_token_like_others_though_its_number_is_0() -> None:
    tokenizer = Tokenizer(32)
    end = tokenizer.ends[1]
    sentence = "cows moo!❤now they sleep"
    tokens = tokenizer([sentence])[0].tolist()
    assert end in tokens
    assert tokens == tokenizer([sentence, "a " * 30])[0].tolist()[: len(tokens)]


@settings(deadline=None)  # the first call reads the vocabulary
@given(
    st.lists(
        st.one_of(st.text(max_size=40), st.from_regex(r"([a-zñé&;'!]{1,9}[ \t\u00a0]?){1,6}")), min_size=1, max_size=4
    )
)
def test_tokens_are_those_of_open_clip(sentences: list[str]) -> None:
    expected = OPEN_CLIP(sentences, context_length=16)
    tokens = Tokenizer(16)(sentences)
    assert not expected[:, tokens.shape[1] :].any()
    assert torch.equal(tokens, expected[:, : tokens.shape[1]])


@pytest.mark.parametrize(
    "sentence", ["un <end_of_text> dos", "&lt;start_of_text&gt; a", "ὈΔΥΣΣΕΎΣ ΣΑΣ", "a\x1cb\x85c  d"]
)
def test_odd_sentences_have_the_tokens_of_open_clip_up_to_the_first_end(sentence: str) -> None:
    expected = OPEN_CLIP([sentence], context_length=24)[0].tolist()
    tokenizer = Tokenizer(24)
    tokens = tokenizer([sentence])[0].tolist()
    length = expected.index(tokenizer.ends[1]) + 1
    assert tokens[:length] == expected[:length]
    assert not any(tokens[length:])
