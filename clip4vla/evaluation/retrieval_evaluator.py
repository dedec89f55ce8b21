"""Scores of a model at retrieval: text to clip and clip to text by modality, and the type-token probe.

In: an embedder and the clips of a test split. Out: `Scores`. Nothing is trained or chosen here.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.format import Clip
from clip4vla.config import AudioToken, EvaluationConfig
from clip4vla.evaluation.labels import Labels
from clip4vla.evaluation.probe import probe_scores
from clip4vla.evaluation.rerank import nearest, rerank
from clip4vla.evaluation.retrieval_metrics import correspondence, ranks
from clip4vla.evaluation.scores import QueryTable, Scores, fingerprint, summarise
from clip4vla.inference.embedder import Embedder
from clip4vla.model.clip4vla import EmbeddingName, Embeddings
from clip4vla.model.media_features import MediaFeatures
from clip4vla.records import MODALITIES, Modality, Text
from clip4vla.utils.hashing import hash_bytes

PROBED: tuple[AudioToken, ...] = ("verbal", "nonverbal")


@dataclass(frozen=True)
class ClipEntry:
    """A test clip without its frames and sound."""

    clip_id: str
    texts: tuple[Text, ...]
    digest: str
    """Of its frames and sound, see `digest`."""


@dataclass(frozen=True)
class EmbeddedSplit:
    """A test split, embedded: Q captions, G clips, and which belong together."""

    clip_ids: tuple[str, ...]
    caption_clips: tuple[str, ...]
    """(Q,) clip of each caption."""
    sentences: tuple[str, ...]
    """(Q,) the captions."""
    captions: NDArray[np.float32]
    """(Q, D)"""
    clips: dict[Modality, NDArray[np.float32]]
    """(G, D) by modality."""
    test_set: str
    """Fingerprint of clips and captions."""
    reranked: NDArray[np.float32] | None = None
    """(Q, G), `similarity("both")` after re-ranking; None where there was none."""

    def similarity(self, modality: Modality) -> NDArray[np.float32]:
        """(Q, G) cosine of every caption with every clip."""
        return self.captions @ self.clips[modality].T


class RetrievalEvaluator:
    """Embeds and scores the clips of a split with one model.

    Args:
        embedder: the model.
        config: batch size, bootstrap and re-ranking.
    """

    def __init__(self, embedder: Embedder, config: EvaluationConfig) -> None:
        self.embedder = embedder
        self.config = config

    def embed(self, dataset: ClipDataset) -> EmbeddedSplit:
        """Embed the captions and, by each modality, the clips of `dataset`; re-rank where that is configured."""
        embeddings, clips = self._embed_clips(dataset, MODALITIES)
        captions = [(clip.clip_id, text.text) for clip in clips for text in clip.texts]
        split = EmbeddedSplit(
            clip_ids=tuple(clip.clip_id for clip in clips),
            caption_clips=tuple(clip_id for clip_id, _ in captions),
            sentences=tuple(text for _, text in captions),
            captions=self.embedder.encode_text([text for _, text in captions]),
            clips={modality: getattr(embeddings, modality).cpu().numpy() for modality in MODALITIES},
            test_set=fingerprint(captions, "".join(clip.digest for clip in clips)),
        )
        reranks = self.config.rerank and self.embedder.model.cross_encoder is not None
        return self.rerank(split, dataset) if reranks else split

    @torch.inference_mode()
    def rerank(self, split: EmbeddedSplit, dataset: ClipDataset) -> EmbeddedSplit:
        """The same split with the nearest `evaluation.rerank` clips of every caption reordered by the cross encoder.

        Raises:
            ValueError: the model has no cross encoder.
        """
        parts = [self.embedder.media_features(clips) for clips in batches(dataset, self.config.batch_size)]
        media, similarity = MediaFeatures.concatenate(parts), split.similarity("both")
        items = nearest(similarity, self.config.rerank)
        captions = torch.from_numpy(split.captions).to(self.embedder.device)
        scores = []
        for query, clips in enumerate(torch.from_numpy(items).to(self.embedder.device)):
            text = captions[query].expand(len(clips), -1)
            scores.append(self.embedder.model.cross_encoder_scores(text, media.take(clips)).float().cpu())
        return replace(split, reranked=rerank(similarity, items, torch.stack(scores).numpy()))

    def score(self, split: EmbeddedSplit, probe: dict[str, float] | None = None) -> Scores:
        """Retrieval both ways by modality with 95 % intervals, joined by the values of a probe."""
        queries: dict[str, QueryTable] = {}
        for modality in MODALITIES:
            similarity = split.similarity(modality)
            queries[f"text_to_clip/{modality}"] = _captions_as_queries(split, similarity)
            queries[f"clip_to_text/{modality}"] = _clips_as_queries(split, similarity)
        if split.reranked is not None:
            queries["text_to_clip/reranked"] = _captions_as_queries(split, split.reranked)
        return summarise(split.test_set, queries, self.config.bootstrap, self.config.seed, probe)

    def probe(self, dataset: ClipDataset, labels: Labels) -> dict[str, float]:
        """How often the audio embedding is nearest to the right sound and the right words, by type token; per cent."""
        texts = {kind: self.embedder.encode_text(choices) for kind, choices in labels.choices.items()}
        values: dict[str, float] = {}
        for token in PROBED:
            embeddings, clips = self._embed_clips(dataset, ("audio",), token)
            assert embeddings.audio is not None
            audio = embeddings.audio.cpu().numpy()
            values |= probe_scores(str(token), audio, [clip.clip_id for clip in clips], texts, labels)
        return values

    def _embed_clips(
        self, dataset: ClipDataset, names: tuple[EmbeddingName, ...], audio_token: AudioToken | None = None
    ) -> tuple[Embeddings, list[ClipEntry]]:
        parts: list[Embeddings] = []
        entries: list[ClipEntry] = []
        for clips in batches(dataset, self.config.batch_size):
            parts.append(self.embedder.embed_clips(clips, names, audio_token))
            entries += [ClipEntry(clip.clip_id, clip.texts, digest(clip)) for clip in clips]
        return Embeddings.concatenate(parts), entries


def batches(dataset: ClipDataset, size: int) -> Iterator[list[Clip]]:
    """All clips in order, `size` at a time."""
    for start in range(0, len(dataset), size):
        yield dataset.take(range(start, min(start + size, len(dataset))))


def digest(clip: Clip) -> str:
    """SHA-256 of the frames and the sound of a clip: a test set with another sound mix is another test set."""
    return hash_bytes([*clip.frames, b"" if clip.audio is None else clip.audio.tobytes()])


def _captions_as_queries(split: EmbeddedSplit, similarity: NDArray[np.float32]) -> QueryTable:
    pairs = correspondence(split.caption_clips, split.clip_ids)
    ids = tuple(f"{clip}#{index}" for index, clip in enumerate(split.caption_clips))
    return QueryTable(ids, split.caption_clips, ranks(similarity, pairs))


def _clips_as_queries(split: EmbeddedSplit, similarity: NDArray[np.float32]) -> QueryTable:
    pairs = correspondence(split.clip_ids, split.caption_clips)
    return QueryTable(split.clip_ids, split.clip_ids, ranks(similarity.T, pairs))
