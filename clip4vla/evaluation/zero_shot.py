"""Zero-shot classification of sounds: the label whose sentence is nearest, as with CLIP and CLAP.

In: clips whose texts are their labels (a folder with a table, AudioSet). Out: `Scores`: accuracy, where every clip has
one label, and mean average precision over the labels, both with 95 % intervals by clip.

The sound is read under the nonverbal token and, in a model with experts, compared with what that expert reads in the
sentence: labels name sounds, not words.

Shapes: G clips, N labels.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from clip4vla.clips.dataset import ClipDataset
from clip4vla.config import AudioToken, EvaluationConfig
from clip4vla.evaluation.retrieval_evaluator import batches
from clip4vla.evaluation.retrieval_metrics import FloatArray, Interval, bootstrap_interval
from clip4vla.evaluation.scores import Samples, Scores, fingerprint, summarise_samples
from clip4vla.inference.embedder import Embedder

TOKEN: AudioToken = "nonverbal"
PROMPT = "the sound of {}"
ACCURACY, MAP = "zero_shot/accuracy", "zero_shot/mAP"


def classify(
    embedder: Embedder, dataset: ClipDataset, labels: Sequence[str], config: EvaluationConfig, prompt: str = PROMPT
) -> Scores:
    """Classify the sounds of `dataset` among `labels`; scores in per cent.

    Args:
        embedder: the model.
        dataset: G clips with sound, each with one or more of the labels as its texts.
        labels: N names of classes, each the label of a clip.
        config: batch size and bootstrap.
        prompt: the sentence of a label, which stands for `{}`.

    Raises:
        ValueError: the prompt has no place for the label, a clip has another label or no sound, a label has no clip,
            or the model has experts but none of the nonverbal token.
    """
    if "{}" not in prompt:
        raise ValueError(f"the prompt {prompt!r} has no {{}}, where the label goes")
    right = label_matrix(dataset, labels)
    similarity = label_similarity(embedder, dataset, [prompt.format(label) for label in labels], config.batch_size)
    test_set = fingerprint(_labels_of_clips(dataset), prompt)
    precision, interval = mean_average_precision(similarity, right, config.bootstrap, config.seed)
    samples = {}
    if (right.sum(axis=1) == 1).all():
        hits = 100.0 * right[np.arange(len(right)), similarity.argmax(axis=1)]
        samples = {ACCURACY: Samples(dataset.clip_ids, hits)}
    notes = {"prompt": prompt} if samples else {"prompt": prompt, ACCURACY: "clips have several labels"}
    scores = summarise_samples(test_set, samples, config.bootstrap, config.seed, {MAP: precision}, notes)
    return Scores(test_set, scores.values, {**scores.intervals, MAP: interval}, {}, scores.samples, notes)


def label_matrix(dataset: ClipDataset, labels: Sequence[str]) -> NDArray[np.bool_]:
    """(G, N) whether a clip has a label.

    Raises:
        ValueError: a clip has another label, or a label has no clip.
    """
    places = {label: place for place, label in enumerate(labels)}
    rows = {clip_id: row for row, clip_id in enumerate(dataset.clip_ids)}
    right = np.zeros((len(rows), len(places)), bool)
    for clip_id, label in _labels_of_clips(dataset):
        if label not in places:
            raise ValueError(f"clip {clip_id} has the label {label!r}, which is none of the {len(places)} labels")
        right[rows[clip_id], places[label]] = True
    if unused := [label for label, place in places.items() if not right[:, place].any()]:
        raise ValueError(f"no clip has the label {unused[0]!r}")
    return right


def label_similarity(
    embedder: Embedder, dataset: ClipDataset, sentences: Sequence[str], batch_size: int
) -> NDArray[np.float32]:
    """(G, N) similarity of the sound of each clip, under the nonverbal token, with each sentence.

    Raises:
        ValueError: a clip has no sound, or the model has no expert of the token.
    """
    texts = embedder.encode_text(sentences, str(TOKEN) if embedder.experts else None)
    rows = []
    for clips in batches(dataset, batch_size):
        if silent := [clip.clip_id for clip in clips if clip.audio is None]:
            raise ValueError(f"clip {silent[0]} has no sound to classify")
        rows.append(embedder.embed_audio(clips, TOKEN) @ texts.T)
    return np.concatenate(rows)


def mean_average_precision(
    similarity: NDArray[np.float32], right: NDArray[np.bool_], resamples: int, seed: int
) -> tuple[float, Interval]:
    """Mean over labels of the average precision, in per cent, and its 95 % bootstrap interval by clip.

    A resample leaves out the labels of which it has no clip. Clips of equal similarity share a threshold.

    Args:
        similarity: (G, N).
        right: (G, N), each label the right one of at least one clip.
    """
    clips = [str(row) for row in range(len(right))]
    everything = _precision_of_draws(similarity, right, np.ones((1, len(right))))
    interval = bootstrap_interval(partial(_precision_of_draws, similarity, right), clips, resamples, seed)
    return float(everything[0]), interval


def _precision_of_draws(similarity: NDArray[np.float32], right: NDArray[np.bool_], weights: FloatArray) -> FloatArray:
    """(n,) 100 times the mean average precision of draws, in which clips count as often as `weights` (n, G) says."""
    of_labels = [_average_precision(similarity[:, label], right[:, label], weights) for label in range(right.shape[1])]
    return 100 * np.nanmean(np.array(of_labels), axis=0)


def _average_precision(similarity: NDArray[np.float32], right: NDArray[np.bool_], weights: FloatArray) -> FloatArray:
    """(n,) average precision of one label in each draw; NaN in a draw without a clip of the label."""
    order = np.argsort(-similarity, kind="stable")
    last_of_equals = np.searchsorted(-similarity[order], -similarity[order], side="right") - 1
    counted = weights[:, order]
    positive = counted * right[order]
    precision = np.cumsum(positive, axis=1)[:, last_of_equals] / np.maximum(
        np.cumsum(counted, axis=1)[:, last_of_equals], 1
    )
    total = positive.sum(axis=1)
    return np.where(total > 0, (positive * precision).sum(axis=1) / np.maximum(total, 1), np.nan)


def _labels_of_clips(dataset: ClipDataset) -> list[tuple[str, str]]:
    """(clip id, label) of every label of every clip."""
    return [
        (clip.clip_id, text.text) for clips in batches(dataset, len(dataset)) for clip in clips for text in clip.texts
    ]
