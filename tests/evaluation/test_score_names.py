"""The names of scores that gates may have: those, and no others, that evaluations give."""

from collections.abc import Collection

import pytest

from benchmarks.clips import write_clips
from clip4vla.clips.dataset import ClipDataset
from clip4vla.config import CaptioningConfig, Config, EvaluationConfig, load_config
from clip4vla.evaluation.caption_evaluator import score_captions
from clip4vla.evaluation.labels import Labels
from clip4vla.evaluation.retrieval_evaluator import RetrievalEvaluator
from clip4vla.evaluation.score_names import ScoreNames, captioning_names, retrieval_names
from clip4vla.evaluation.scores import Scores
from clip4vla.inference.embedder import Embedder
from tests.evaluation.test_caption_evaluator import EVALUATION, SLOTS, captions
from tests.evaluation.test_retrieval_evaluator import QUERIES
from tests.inference.tiny import INFERENCE, expert_model, tiny_model
from tests.project import REPOSITORY

CLIPS = 6
LABELS = Labels(
    {"sound": ("a bell", "a cow"), "speech": ("uno", "dos")}, {"clip1": {"sound": "a cow", "speech": "uno"}}
)
OF_JAVA = ("METEOR", "SPICE")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ClipDataset:
    return ClipDataset([write_clips(tmp_path_factory.mktemp("clips") / "test.lance", CLIPS)])


def config_with(fusion: str, rerank: int, modalities: str = "both") -> Config:
    """The committed configuration with labels and queries, and a corpus `voices` of unseen clips."""
    config = load_config(REPOSITORY / "params.yaml")
    unseen = config.corpora["stampscenes-captions"].model_copy(update={"role": "unseen"})
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"fusion": fusion}),
            "evaluation": config.evaluation.model_copy(update={"rerank": rerank}),
            "corpora": {**config.corpora, "voices": unseen},
            "captioning": CaptioningConfig(**config.captioning.model_dump() | {"modalities": modalities}),
        }
    )


def check(names: ScoreNames, scores: Scores, without: Collection[str] = ()) -> None:
    """Have `scores` all names but those that end in one of `without`, and those alone."""
    expected = {name for name in names.paired | names.others if name.rsplit("/", 1)[1] not in without}
    assert scores.values.keys() == expected
    tables = {name for table in scores.queries for name in scores.values if name.startswith(f"{table}/")}
    assert names.paired == tables | scores.samples.keys()


@pytest.mark.parametrize(("fusion", "rerank"), [("experts", 0), ("sequence", 3)])
def test_retrieval_gives_the_scores_that_are_named(dataset: ClipDataset, fusion: str, rerank: int) -> None:
    model = expert_model() if fusion == "experts" else tiny_model("sequence", has_cross_encoder=True)
    evaluator = RetrievalEvaluator(Embedder(model, INFERENCE), EvaluationConfig(rerank=rerank, bootstrap=100))
    scores = evaluator.score(evaluator.embed(dataset, QUERIES, {"voices": dataset}, probes=True), LABELS)
    check(retrieval_names(config_with(fusion, rerank), QUERIES.groups()), scores)


def test_captioning_gives_the_scores_that_are_named() -> None:
    found = captions(with_sound=frozenset({"one", "three"}))
    generated = {**found.generated, "audio": found.generated["video"]}
    for modalities, kept in (("both", generated), ("video", {"video": generated["video"]})):
        scores = score_captions(
            type(found)(found.references, kept, found.content, found.with_sound), SLOTS, EVALUATION, java=False
        )
        check(captioning_names(config_with("mean", 0, modalities), {"seen", "sound"}), scores, OF_JAVA)


def test_without_labels_queries_and_experts_their_scores_have_no_names() -> None:
    config = config_with("mean", 0)
    bare = config.model_copy(update={"evaluation": EvaluationConfig(), "corpora": {}})
    names = retrieval_names(bare, ())
    assert not names.others
    assert {name.split("/")[0] for name in names.paired} == {"text_to_clip", "clip_to_text", "with_sound"}
