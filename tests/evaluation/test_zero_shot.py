"""Zero-shot classification: accuracy and mean average precision against scikit-learn's, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.ingest import ingest
from clip4vla.config import EvaluationConfig
from clip4vla.corpora.folder import read
from clip4vla.corpora.manifest import MANIFEST_FILE, write_manifest
from clip4vla.evaluation.zero_shot import ACCURACY, MAP, classify, label_similarity, mean_average_precision
from clip4vla.inference.embedder import Embedder
from tests.inference.tiny import AUDIO, CLIPS, INFERENCE, expert_model, tiny_model, write_video

LABELS = ["bell", "dog"]
CONFIG = EvaluationConfig(bootstrap=100, batch_size=3)
ONE_LABEL = [(0, "bell"), (1, "dog"), (2, "dog"), (3, "bell"), (4, "dog")]


def dataset(folder: Path, labels: list[tuple[int, str]]) -> ClipDataset:
    """Clips of a folder whose table has a row for each label of each file."""
    media = folder / "media"
    media.mkdir(parents=True)
    for number in {number for number, _ in labels}:
        write_video(media / f"{number}.mp4", number)
    rows = [f"{number}.mp4,{label},test" for number, label in labels]
    (folder / "labels.csv").write_text("\n".join(["path,text,split", *rows, ""]))
    write_manifest(read(folder), media, folder / "manifest")
    ingest(folder / "manifest" / MANIFEST_FILE, media, folder / "clips", CLIPS, AUDIO)
    return ClipDataset([folder / "clips/test.lance"])


@pytest.mark.parametrize("fusion", ["mean", "experts"])
def test_accuracy_is_the_share_of_clips_whose_nearest_label_is_right(fusion: str, tmp_path: Path) -> None:
    clips = dataset(tmp_path, ONE_LABEL)
    embedder = Embedder(expert_model() if fusion == "experts" else tiny_model(), INFERENCE)
    scores = classify(embedder, clips, LABELS, CONFIG, "a sound: {}")
    texts = embedder.encode_text(["a sound: bell", "a sound: dog"], "nonverbal" if embedder.experts else None)
    similarity = embedder.embed_audio(clips.take(range(5)), "nonverbal") @ texts.T
    right = np.array([LABELS.index(clip.texts[0].text) for clip in clips.take(range(5))])
    assert scores.values[ACCURACY] == pytest.approx(100 * (similarity.argmax(axis=1) == right).mean())
    low, high = scores.intervals[ACCURACY]
    assert low <= scores.values[ACCURACY] <= high
    assert scores.intervals[MAP][0] <= scores.values[MAP] <= scores.intervals[MAP][1]


def test_clips_of_several_labels_have_no_accuracy(tmp_path: Path) -> None:
    clips = dataset(tmp_path, [*ONE_LABEL[:3], (0, "dog")])
    embedder = Embedder(tiny_model(), INFERENCE)
    scores = classify(embedder, clips, LABELS, CONFIG)
    assert set(scores.values) == {MAP}
    assert scores.notes[ACCURACY] == "clips have several labels"
    similarity = label_similarity(embedder, clips, ["the sound of bell", "the sound of dog"], 2)
    right = np.array([[label in {t.text for t in c.texts} for label in LABELS] for c in clips.take(range(3))])
    assert scores.values[MAP] == pytest.approx(100 * average_precision_score(right, similarity, average="macro"))


def test_mean_average_precision_is_that_of_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(0)
    similarity = rng.integers(0, 6, (40, 5)).astype(np.float32)
    right = rng.random((40, 5)) < 0.3
    value, (low, high) = mean_average_precision(similarity, right, 200, 0)
    assert value == pytest.approx(100 * average_precision_score(right, similarity, average="macro"))
    assert low < value < high


def test_a_label_that_no_clip_has_and_a_clip_with_another_label_are_named(tmp_path: Path) -> None:
    clips = dataset(tmp_path, ONE_LABEL[:2])
    embedder = Embedder(tiny_model(), INFERENCE)
    with pytest.raises(ValueError, match="no clip has the label 'cow'"):
        classify(embedder, clips, [*LABELS, "cow"], CONFIG)
    with pytest.raises(ValueError, match="has the label 'dog', which is none of the 1 labels"):
        classify(embedder, clips, ["bell"], CONFIG)
    with pytest.raises(ValueError, match=r"has no \{\}"):
        classify(embedder, clips, LABELS, CONFIG, "a sound")
