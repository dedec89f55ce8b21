"""The second opinion of a judge: the nearest clips of a caption in the order of the score that reads them together."""

import numpy as np
import pytest
import torch

from benchmarks.clips import write_clips
from clip4vla.clips.loader import ClipStore
from clip4vla.evaluation.suite import Judge
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.towers import find_architecture
from clip4vla.params import load_params
from tests.project import REPOSITORY

PARAMS = load_params(REPOSITORY / "params.yaml")
MODEL = PARAMS.model.model_copy(update={"fusion": "sequence"})
CLIPS, NEAREST = 6, 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    return ClipStore([write_clips(tmp_path_factory.mktemp("clips") / "test.lance", CLIPS)])


def judge(scores_pairs: bool = True, batch_size: int = CLIPS) -> Judge:
    torch.manual_seed(0)
    architecture = find_architecture("stamp-small", None)
    model = Clip4Vla(MODEL, PARAMS.audio, architecture, scores_pairs=scores_pairs).eval()
    if model.scorer is not None:
        torch.nn.init.normal_(model.scorer.similarity.weight)
    evaluate = PARAMS.evaluate.model_copy(update={"rerank": NEAREST, "bootstrap": 100, "batch_size": batch_size})
    return Judge(model, PARAMS.finetune, evaluate)


def test_only_the_nearest_change_places_and_by_the_score_of_pairs(store: ClipStore) -> None:
    one = judge()
    first = one.gallery(store, "both")
    second = judge(batch_size=4).rerank(first, store, "both")
    similarity, reranked = first.similarity("both"), second.reranked
    assert first.reranked is None
    assert reranked is not None
    by_first, by_second = (np.argsort(-values, axis=1, kind="stable") for values in (similarity, reranked))
    assert np.array_equal(by_first[:, NEAREST:], by_second[:, NEAREST:])
    assert not np.array_equal(by_first, by_second)
    percepts = one.model.perceive(one._collated(store.take(range(CLIPS))), audio_token="both", modalities="both")
    for query, clips in enumerate(by_second[:, :NEAREST]):
        assert set(clips) == set(by_first[query, :NEAREST])
        text = torch.from_numpy(first.captions[query]).expand(NEAREST, -1)
        with torch.no_grad():
            scores = one.model.cross_scores(text, percepts.take(torch.from_numpy(clips)))
        assert (scores.diff() < 0).all()


def test_both_opinions_are_scored(store: ClipStore) -> None:
    one = judge()
    gallery = one.gallery(store, "both")
    assert "text_to_clip/reranked" not in one.score(gallery).queries
    scores = one.score(one.rerank(gallery, store, "both"))
    assert {"text_to_clip/both/R@1", "text_to_clip/reranked/R@1"} <= scores.values.keys()
    assert scores.values["text_to_clip/both/R@1"] == one.score(gallery).values["text_to_clip/both/R@1"]
    assert scores.intervals["text_to_clip/reranked/R@1"][0] <= scores.values["text_to_clip/reranked/R@1"]


def test_a_model_that_scores_no_pairs_has_no_second_opinion(store: ClipStore) -> None:
    one = judge(scores_pairs=False)
    with pytest.raises(ValueError, match="this model scores no pairs"):
        one.rerank(one.gallery(store, "both"), store, "both")
