"""A split embedded and scored: similarities of the towers, the re-ranked order of the cross encoder, and the probe."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.clips import write_clips
from clip4vla.clips.dataset import ClipDataset
from clip4vla.config import EvaluationConfig
from clip4vla.evaluation.labels import Labels
from clip4vla.evaluation.queries import Query, QuerySet
from clip4vla.evaluation.retrieval_evaluator import RetrievalEvaluator, digest
from clip4vla.evaluation.scores import Scores, SplitSize
from clip4vla.inference.embedder import Embedder
from clip4vla.records import MODALITIES
from tests.inference.tiny import INFERENCE, WIDTH, expert_model, tiny_model

CLIPS, NEAREST = 6, 3


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ClipDataset:
    return ClipDataset([write_clips(tmp_path_factory.mktemp("clips") / "test.lance", CLIPS)])


def evaluator(has_cross_encoder: bool = True, batch_size: int = CLIPS, rerank: int = NEAREST) -> RetrievalEvaluator:
    model = tiny_model("sequence", has_cross_encoder=has_cross_encoder)
    if model.cross_encoder is not None:
        torch.manual_seed(1)
        torch.nn.init.normal_(model.cross_encoder.similarity.weight)
    config = EvaluationConfig(rerank=rerank, bootstrap=100, batch_size=batch_size)
    return RetrievalEvaluator(Embedder(model, INFERENCE), config)


def test_a_split_has_a_vector_per_caption_and_per_clip_and_modality(dataset: ClipDataset) -> None:
    split = evaluator(rerank=0).embed(dataset)
    assert split.clip_ids == dataset.clip_ids
    assert split.caption_clips == tuple(clip_id for clip_id in dataset.clip_ids for _ in range(2))
    assert list(split.sentences) == list(dataset.sentences())
    assert split.captions.shape == (2 * CLIPS, WIDTH)
    assert {modality: vectors.shape for modality, vectors in split.clips.items()} == dict.fromkeys(
        MODALITIES, (CLIPS, WIDTH)
    )
    assert split.reranked is None
    np.testing.assert_array_equal(split.clips["audio"][0], 0)  # the first clip has no sound
    np.testing.assert_array_equal(split.clips["both"][0], split.clips["video"][0])


def test_the_batch_size_does_not_change_a_split(dataset: ClipDataset) -> None:
    one, other = evaluator().embed(dataset), evaluator(batch_size=4).embed(dataset)
    assert one.test_set == other.test_set
    for modality in MODALITIES:
        np.testing.assert_allclose(one.similarity(modality), other.similarity(modality), atol=1e-5)
    assert one.reranked is not None
    assert other.reranked is not None
    np.testing.assert_allclose(one.reranked, other.reranked, atol=1e-5)


def test_only_the_nearest_clips_are_reordered_by_the_cross_encoder(dataset: ClipDataset) -> None:
    one = evaluator(batch_size=4)
    split = one.embed(dataset)
    assert split.reranked is not None
    before, after = (
        np.argsort(-values, axis=1, kind="stable") for values in (split.similarity("both"), split.reranked)
    )
    assert np.array_equal(before[:, NEAREST:], after[:, NEAREST:])
    assert not np.array_equal(before, after)
    media = one.embedder.media_features(dataset.take(range(CLIPS)))
    for query, clips in enumerate(after[:, :NEAREST]):
        assert set(clips) == set(before[query, :NEAREST])
        text = torch.from_numpy(split.captions[query]).expand(NEAREST, -1)
        with torch.no_grad():
            scores = one.embedder.model.cross_encoder_scores(text, media.take(torch.from_numpy(clips)))
        assert (scores.diff() < 0).all()


def test_both_orders_are_scored(dataset: ClipDataset) -> None:
    plain, reranked = (evaluator(rerank=count) for count in (0, NEAREST))
    first = plain.score(plain.embed(dataset))
    assert "text_to_clip/reranked" not in first.queries
    scores = reranked.score(reranked.embed(dataset))
    assert {"text_to_clip/both/R@1", "text_to_clip/reranked/R@1"} <= scores.values.keys()
    assert scores.values["text_to_clip/both/R@1"] == first.values["text_to_clip/both/R@1"]
    assert scores.intervals["text_to_clip/reranked/R@1"][0] <= scores.values["text_to_clip/reranked/R@1"]


def test_both_directions_are_scored_by_every_modality(dataset: ClipDataset) -> None:
    one = evaluator(rerank=0)
    split = one.embed(dataset)
    scores = one.score(split)
    tables = {f"{direction}/{m}" for direction in ("text_to_clip", "clip_to_text") for m in MODALITIES}
    assert scores.queries.keys() == tables | {f"with_sound/{table}" for table in tables}
    own = np.repeat(np.arange(CLIPS), 2)
    best = split.similarity("video").argmax(axis=1)
    assert scores.values["text_to_clip/video/R@1"] == pytest.approx(100 * (best == own).mean())
    best = split.similarity("video").T.argmax(axis=1)
    assert scores.values["clip_to_text/video/R@1"] == pytest.approx(100 * (own[best] == np.arange(CLIPS)).mean())


def test_a_model_without_a_cross_encoder_is_not_reranked(dataset: ClipDataset) -> None:
    one = evaluator(has_cross_encoder=False)
    split = one.embed(dataset)
    assert split.reranked is None
    with pytest.raises(ValueError, match="this model has no cross encoder"):
        one.rerank(split, dataset)


def test_the_probe_compares_the_audio_of_each_token_with_the_texts(dataset: ClipDataset) -> None:
    one = evaluator()
    choices = {"sound": ("a bell", "a cow"), "speech": ("uno", "dos", "tres")}
    labels = Labels(
        choices, {"clip1": {"sound": "a cow", "speech": "dos"}, "clip2": {"sound": "a bell", "speech": "uno"}}
    )
    scores = one.score(one.embed(dataset, probes=True), labels)
    expected = {}
    for token in ("verbal", "nonverbal"):
        audio = one.embedder.embed_clips(dataset.take([1, 2]), ("audio",), token).audio
        assert audio is not None
        for kind, texts in choices.items():
            nearest = (audio.numpy() @ one.embedder.encode_text(texts).T).argmax(axis=1)
            right = [texts.index(labels.clips[clip][kind]) for clip in ("clip1", "clip2")]
            expected[f"probe/{token}/{kind}/R@1"] = 100 * float((nearest == right).mean())
    assert {name: value for name, value in scores.values.items() if name.startswith("probe/")} == expected


def test_another_sound_or_frame_is_another_test_set(dataset: ClipDataset, tmp_path: Path) -> None:
    other = ClipDataset([write_clips(tmp_path / "test.lance", CLIPS, samples=8000)])
    test_sets = {evaluator(rerank=0).embed(found).test_set for found in (dataset, dataset, other)}
    assert len(test_sets) == 2
    assert len({digest(clip) for clip in dataset.take(range(CLIPS))}) == CLIPS


QUERIES = QuerySet(
    tuple(
        Query(query=sentence, kind=kind, phrasing=phrasing, clips=clips)
        for sentence, kind, phrasing, clips in (
            ("a thing is heard", "heard", "trained", ("clip1", "clip4")),
            ("one hears a thing", "heard", "trained", ("clip1", "clip4")),
            ("someone says word2", "said", "trained", ("clip2",)),
            ("one can hear a thing", "heard", "held_out", ("clip3",)),
        )
    )
)


@pytest.fixture(scope="module")
def experts() -> RetrievalEvaluator:
    config = EvaluationConfig(bootstrap=100, batch_size=4)
    return RetrievalEvaluator(Embedder(expert_model(), INFERENCE), config)


def test_queries_are_scored_by_kind_and_modality_with_the_mean_weights(
    experts: RetrievalEvaluator, dataset: ClipDataset
) -> None:
    split = experts.embed(dataset, QUERIES)
    scores = experts.score(split)
    groups = ("by_query/heard", "by_query/said", "held_out/heard")
    assert {f"{group}/{modality}" for group in groups for modality in MODALITIES} < scores.queries.keys()
    weights = experts.embedder.weigh(QUERIES.sentences)
    for column, expert in enumerate(("video", "verbal", "nonverbal")):
        assert scores.values[f"by_query/heard/weight/{expert}"] == pytest.approx(float(weights[:2, column].mean()))
    vectors = experts.embedder.encode_text(QUERIES.sentences[:2])
    for modality in MODALITIES:
        similarity = vectors @ split.clips[modality].T
        rank = [1 + int((row > max(row[1], row[4])).sum()) for row in similarity]
        assert scores.queries[f"by_query/heard/{modality}"].ranks.rank.tolist() == rank
        assert f"by_query/heard/{modality}/R@1" in scores.intervals


def test_a_model_without_experts_is_scored_by_kind_without_weights(dataset: ClipDataset) -> None:
    one = evaluator(rerank=0)
    scores = one.score(one.embed(dataset, QUERIES))
    assert scores.query_kinds() == ("heard", "said")
    assert not [name for name in scores.values if "/weight/" in name]


def test_other_queries_are_another_test_set(experts: RetrievalEvaluator, dataset: ClipDataset) -> None:
    fewer = QuerySet(QUERIES.queries[1:])
    splits = [experts.embed(dataset, queries) for queries in (QUERIES, QUERIES, fewer, QuerySet(()))]
    assert len({split.test_set for split in splits}) == 3
    assert splits[-1].test_set == experts.embed(dataset).test_set


def rendering(tmp_path: Path, **changes: int) -> ClipDataset:
    """The clips of the data set, or the first of them, rendered again."""
    return ClipDataset([write_clips(tmp_path / "unseen.lance", **{"clips": CLIPS, **changes})])


def test_unseen_clips_take_the_places_of_the_original_ones(
    experts: RetrievalEvaluator, dataset: ClipDataset, tmp_path: Path
) -> None:
    other = rendering(tmp_path, clips=3, samples=8000)
    split = experts.embed(dataset, QUERIES, {"voices": other})
    scores = experts.score(split)
    assert split.unseen["voices"].rows.tolist() == [0, 1, 2]
    assert scores.unseen_corpora() == ("voices",)
    assert scores.query_kinds("unseen/voices") == scores.query_kinds("original/voices") == ("said",)
    [vector] = experts.embedder.encode_text(["someone says word2"])
    renderings = split.clips["both"], experts.embed(other).clips["both"]
    before, after = split.clips["both"] @ vector, np.concatenate([renderings[1], renderings[0][3:]]) @ vector
    for group, similarity in (("original", before), ("unseen", after)):
        table = scores.queries[f"{group}/voices/said/both"]
        assert table.ranks.rank.tolist() == [1 + int((similarity > similarity[2]).sum())]
        assert f"{group}/voices/said/both/R@1" in scores.intervals
    assert not np.array_equal(before, after)


def test_the_same_rendering_scores_the_same_on_the_same_queries(
    experts: RetrievalEvaluator, dataset: ClipDataset, tmp_path: Path
) -> None:
    scores = experts.score(experts.embed(dataset, QUERIES, {"same": rendering(tmp_path)}))
    for kind in ("heard", "said"):
        ranks = [scores.queries[f"{group}/{kind}/both"].ranks.rank for group in ("by_query", "original/same")]
        np.testing.assert_array_equal(*ranks)
        np.testing.assert_array_equal(ranks[0], scores.queries[f"unseen/same/{kind}/both"].ranks.rank)


def test_unseen_clips_are_part_of_the_test_set_and_must_be_of_the_split(
    experts: RetrievalEvaluator, dataset: ClipDataset, tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    unseen = {"voices": rendering(tmp_path, clips=3, samples=8000)}
    assert experts.embed(dataset, QUERIES, unseen).test_set != experts.embed(dataset, QUERIES).test_set
    with pytest.raises(ValueError, match="2 clips of voices are no test clips, such as clip6"):
        experts.embed(dataset, QUERIES, {"voices": rendering(tmp_path / "more", clips=CLIPS + 2)})


def test_experts_score_by_the_weighted_sum_and_a_missing_modality_scores_nothing_alone(
    experts: RetrievalEvaluator, dataset: ClipDataset
) -> None:
    split = experts.embed(dataset)
    assert split.captions.shape == (2 * CLIPS, 3 * WIDTH)
    both, alone = split.similarity("both"), split.similarity("video") + split.similarity("audio")
    np.testing.assert_allclose(both[:, 1:], alone[:, 1:], atol=1e-6)
    np.testing.assert_array_equal(split.similarity("audio")[:, 0], 0)  # the first clip has no sound
    assert np.abs(both[:, 0] - alone[:, 0]).max() > 1e-3  # the learned vector stands for it
    scores = experts.score(split)
    assert scores.values["text_to_clip/both/MnR"] == pytest.approx(
        np.mean([1 + (row > row[query // 2]).sum() for query, row in enumerate(both)])
    )


def test_only_the_tokens_of_the_experts_are_probed(dataset: ClipDataset) -> None:
    labels = Labels({"sound": ("a bell", "a cow")}, {"clip1": {"sound": "a cow"}, "clip2": {"sound": "a bell"}})
    for tokens, probed in (
        (("verbal", "nonverbal"), ("verbal", "nonverbal")),
        (("nonverbal",), ("nonverbal",)),
        (("none",), ()),
    ):
        model = expert_model(tokens)
        one = RetrievalEvaluator(Embedder(model, INFERENCE), EvaluationConfig(bootstrap=100))
        split = one.embed(dataset, probes=True)
        found = {name for name in one.score(split, labels).values if name.startswith("probe/")}
        assert found == {f"probe/{token}/sound/R@1" for token in probed}
        clips = dataset.take(range(CLIPS))
        for token in probed:
            np.testing.assert_allclose(split.audio[token], one.embedder.embed_audio(clips, token), atol=1e-6)


def test_a_test_set_with_another_rule_of_what_is_right_is_another_one(dataset: ClipDataset) -> None:
    embedder = Embedder(tiny_model(), INFERENCE)
    rules = (EvaluationConfig(identical_captions_match=match) for match in (False, True))
    assert len({RetrievalEvaluator(embedder, rule).embed(dataset).test_set for rule in rules}) == 2


def test_an_identical_caption_is_right_for_every_clip_that_has_it(dataset: ClipDataset) -> None:
    embedder = Embedder(tiny_model(), INFERENCE)
    split = RetrievalEvaluator(embedder, EvaluationConfig()).embed(dataset)
    sentences = ("the same", *split.sentences[1:-1], "the same")
    same = replace(split, sentences=sentences, captions=embedder.encode_text(sentences))
    own, matched = (
        RetrievalEvaluator(embedder, EvaluationConfig(bootstrap=100, identical_captions_match=match)).score(same)
        for match in (False, True)
    )
    before, after = (scores.queries["text_to_clip/video"].ranks.rank for scores in (own, matched))
    assert before[0] != before[-1]
    assert after[0] == after[-1] == min(before[0], before[-1])
    np.testing.assert_array_equal(before[1:-1], after[1:-1])
    back = [scores.queries["clip_to_text/video"].ranks.rank for scores in (own, matched)]
    assert (back[1] <= back[0]).all()


def test_clips_with_sound_are_a_test_set_of_their_own(dataset: ClipDataset, tmp_path: Path) -> None:
    one = evaluator()
    split = one.embed(dataset)
    assert split.has_sound == (False, *[True] * (CLIPS - 1))
    assert split.size == SplitSize(CLIPS, CLIPS - 1)
    scores, alone = one.score(split), one.score(split.with_sound())
    assert alone.size == SplitSize(CLIPS - 1, CLIPS - 1)
    assert not any(name.startswith("with_sound/") for name in alone.values)  # all of them have sound
    for name, value in alone.values.items():
        assert scores.values[f"with_sound/{name}"] == value
        assert scores.intervals[f"with_sound/{name}"] == alone.intervals[name]
    similarity = split.similarity("audio")[2:, 1:]  # two captions of the first clip are left out, and the clip itself
    found = similarity.argmax(axis=1) == np.repeat(np.arange(CLIPS - 1), 2)
    assert scores.values["with_sound/text_to_clip/audio/R@1"] == pytest.approx(100 * found.mean())
    scores.write(tmp_path)
    assert Scores.read(tmp_path).size == scores.size
    assert str(scores.size) == "6 clips, 5 of them with sound"
