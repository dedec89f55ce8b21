"""Scores of a model at retrieval: text to clip and clip to text by modality, and the type-token probe.

In: an embedder and the clips of a test split. Out: `Scores`. Nothing is trained or chosen here.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.format import Clip
from clip4vla.config import AudioToken, EvaluationConfig
from clip4vla.evaluation.labels import Labels
from clip4vla.evaluation.probe import probe_scores
from clip4vla.evaluation.queries import NO_QUERIES, QuerySet
from clip4vla.evaluation.rerank import nearest, rerank
from clip4vla.evaluation.retrieval_metrics import IntArray, caption_correspondence, correspondence, ranks
from clip4vla.evaluation.score_names import CLIP_TO_TEXT, PROBED, RERANKED, TEXT_TO_CLIP
from clip4vla.evaluation.scores import (
    ORIGINAL,
    UNSEEN,
    WITH_SOUND,
    QueryTable,
    Scores,
    SplitSize,
    fingerprint,
    summarise,
)
from clip4vla.inference.embedder import Embedder
from clip4vla.model.media_features import MediaFeatures
from clip4vla.records import MODALITIES, Modality, Text
from clip4vla.utils.hashing import hash_bytes

Key = TypeVar("Key")


@dataclass(frozen=True)
class ClipEntry:
    """A test clip without its frames and sound."""

    clip_id: str
    texts: tuple[Text, ...]
    digest: str
    """Of its frames and sound, see `digest`."""
    has_sound: bool


@dataclass(frozen=True)
class UnseenClips:
    """U of the G test clips in another rendering, embedded."""

    rows: NDArray[np.int64]
    """(U,) their rows among the clips of the split."""
    clips: NDArray[np.float32]
    """(U, D) by both modalities."""


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
    audio: Mapping[AudioToken, NDArray[np.float32]]
    """(G, D) their sound under each type token that is probed."""
    has_sound: tuple[bool, ...]
    """(G,)"""
    test_set: str
    """Fingerprint of clips, captions and queries."""
    queries: QuerySet = NO_QUERIES
    """Further test sentences, by kind."""
    query_vectors: NDArray[np.float32] | None = None
    """(number of queries, D)"""
    reranked: NDArray[np.float32] | None = None
    """(Q, G), `similarity("both")` after re-ranking; None where there was none."""
    unseen: Mapping[str, UnseenClips] = field(default_factory=dict)
    """Other renderings of its clips, by corpus."""

    @property
    def size(self) -> SplitSize:
        """Clips, and those with sound."""
        return SplitSize(len(self.clip_ids), sum(self.has_sound))

    def texts(self) -> NDArray[np.float32]:
        """(Q + number of queries, D) captions and queries."""
        return self.captions if self.query_vectors is None else np.concatenate([self.captions, self.query_vectors])

    def similarity(self, modality: Modality) -> NDArray[np.float32]:
        """(Q, G) cosine of every caption with every clip."""
        return self.captions @ self.clips[modality].T

    def with_sound(self) -> "EmbeddedSplit":
        """The clips that have sound and their captions, as a test set of its own, without queries and unseen clips."""
        rows = np.flatnonzero(self.has_sound)
        kept = {self.clip_ids[row] for row in rows}
        captions = np.array([index for index, clip_id in enumerate(self.caption_clips) if clip_id in kept], int)
        return replace(
            self,
            clip_ids=tuple(self.clip_ids[row] for row in rows),
            caption_clips=tuple(self.caption_clips[index] for index in captions),
            sentences=tuple(self.sentences[index] for index in captions),
            captions=self.captions[captions],
            clips={modality: vectors[rows] for modality, vectors in self.clips.items()},
            audio={token: vectors[rows] for token, vectors in self.audio.items()},
            queries=NO_QUERIES,
            query_vectors=None,
            reranked=None if self.reranked is None else self.reranked[np.ix_(captions, rows)],
            has_sound=(True,) * len(rows),
            unseen={},
        )


class RetrievalEvaluator:
    """Embeds and scores the clips of a split with one model.

    Args:
        embedder: the model.
        config: batch size, bootstrap and re-ranking.
    """

    def __init__(self, embedder: Embedder, config: EvaluationConfig) -> None:
        self.embedder = embedder
        self.config = config

    def embed(
        self,
        dataset: ClipDataset,
        queries: QuerySet = NO_QUERIES,
        unseen: Mapping[str, ClipDataset] | None = None,
        *,
        probes: bool = False,
    ) -> EmbeddedSplit:
        """Embed captions, queries and, by each modality, the clips of `dataset`; re-rank where that is configured.

        Args:
            dataset: the clips of a split.
            queries: further test sentences.
            unseen: clips of the split in another rendering, by corpus.
            probes: embed what the type-token probe of `score` compares, too.

        Raises:
            ValueError: an unseen clip is not of the split.
        """
        entries, vectors, audio = self._embed_clips(dataset, self._probed() if probes else ())
        captions = [(entry.clip_id, text.text) for entry in entries for text in entry.texts]
        content = "".join(entry.digest for entry in entries) + (queries.digest if queries else "")
        content += "identical captions match" if self.config.identical_captions_match else ""
        row_of = {entry.clip_id: row for row, entry in enumerate(entries)}
        other_clips = {}
        for name, clips in (unseen or {}).items():
            others, by_modality, _ = self._embed_clips(clips)
            other_clips[name] = UnseenClips(_rows_of_unseen(name, others, row_of), by_modality["both"])
            content += name + "".join(entry.digest for entry in others)
        split = EmbeddedSplit(
            clip_ids=tuple(entry.clip_id for entry in entries),
            caption_clips=tuple(clip_id for clip_id, _ in captions),
            sentences=tuple(text for _, text in captions),
            captions=self.embedder.encode_text([text for _, text in captions]),
            clips=vectors,
            audio=audio,
            test_set=fingerprint(captions, content),
            queries=queries,
            query_vectors=self.embedder.encode_text(queries.sentences),
            has_sound=tuple(entry.has_sound for entry in entries),
            unseen=other_clips,
        )
        reranks = self.config.rerank and self.embedder.model.cross_encoder is not None
        return self.rerank(split, dataset) if reranks else split

    def _embed_clips(
        self, dataset: ClipDataset, tokens: Collection[AudioToken] = ()
    ) -> tuple[list[ClipEntry], dict[Modality, NDArray[np.float32]], dict[AudioToken, NDArray[np.float32]]]:
        """The clips of `dataset`, and their vectors (G, D) by modality, and of their sound by type token."""
        vectors: dict[Modality, list[NDArray[np.float32]]] = {modality: [] for modality in MODALITIES}
        audio: dict[AudioToken, list[NDArray[np.float32]]] = {token: [] for token in tokens}
        entries: list[ClipEntry] = []
        for clips in batches(dataset, self.config.batch_size):
            by_modality = self.embedder.embed_by_modality(clips)
            for modality, of_batch in by_modality.items():
                vectors[modality].append(of_batch)
            for token, parts in audio.items():
                if self.embedder.experts:
                    parts.append(by_modality["audio"] * self.embedder.expert_mask(str(token)))
                else:
                    parts.append(self.embedder.embed_audio(clips, token))
            entries += [ClipEntry(clip.clip_id, clip.texts, digest(clip), clip.has_sound) for clip in clips]
        return entries, _concatenated(vectors), _concatenated(audio)

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

    def score(self, split: EmbeddedSplit, labels: Labels | None = None) -> Scores:
        """Retrieval both ways by modality with 95 % intervals, joined by the type-token probe where there are labels.

        Where some clips have sound and others don't, also of those with sound alone, see `WITH_SOUND`.
        """
        tables = self._both_ways(split)
        if 0 < split.size.with_sound < split.size.clips:
            tables |= {f"{WITH_SOUND}/{name}": table for name, table in self._both_ways(split.with_sound()).items()}
        others = self._probe(split, labels) if labels else {}
        if split.queries:
            assert split.query_vectors is not None
            similarities = {modality: split.query_vectors @ split.clips[modality].T for modality in MODALITIES}
            tables |= split.queries.tables(similarities, split.clip_ids)
            tables |= _unseen_tables(split, split.query_vectors, similarities["both"])
            if self.embedder.experts:
                weights = self.embedder.weights_of(split.query_vectors)
                others |= split.queries.mean_weights(weights, self.embedder.experts)
        return summarise(split.test_set, tables, self.config.bootstrap, self.config.seed, others, size=split.size)

    def _both_ways(self, split: EmbeddedSplit) -> dict[str, QueryTable]:
        """What became of captions and clips as queries, by modality."""
        pairs = self._pairs(split)
        tables: dict[str, QueryTable] = {}
        for modality in MODALITIES:
            similarity = split.similarity(modality)
            tables[f"{TEXT_TO_CLIP}/{modality}"] = _captions_as_queries(split, similarity, pairs)
            tables[f"{CLIP_TO_TEXT}/{modality}"] = _clips_as_queries(split, similarity, pairs)
        if split.reranked is not None:
            tables[RERANKED] = _captions_as_queries(split, split.reranked, pairs)
        return tables

    def _pairs(self, split: EmbeddedSplit) -> IntArray:
        """Pairs (N, 2) of (caption, clip) that belong together."""
        if self.config.identical_captions_match:
            return caption_correspondence(split.sentences, split.caption_clips, split.clip_ids)
        return correspondence(split.caption_clips, split.clip_ids)

    def _probed(self) -> list[AudioToken]:
        """The type tokens that the model has learnt and the probe compares."""
        return [token for token in PROBED if not self.embedder.experts or token in self.embedder.experts]

    def _probe(self, split: EmbeddedSplit, labels: Labels) -> dict[str, float]:
        """How often the audio embedding is nearest to the right sound and the right words, by type token; per cent."""
        values: dict[str, float] = {}
        for token, audio in split.audio.items():
            expert = str(token) if self.embedder.experts else None
            texts = {kind: self.embedder.encode_text(choices, expert) for kind, choices in labels.choices.items()}
            values |= probe_scores(str(token), audio, split.clip_ids, texts, labels)
        return values


def _concatenated(parts: Mapping[Key, list[NDArray[np.float32]]]) -> dict[Key, NDArray[np.float32]]:
    return {key: np.concatenate(of_key) for key, of_key in parts.items()}


def batches(dataset: ClipDataset, size: int) -> Iterator[list[Clip]]:
    """All clips in order, `size` at a time."""
    for start in range(0, len(dataset), size):
        yield dataset.take(range(start, min(start + size, len(dataset))))


def digest(clip: Clip) -> str:
    """SHA-256 of the frames and the sound of a clip: a test set with another sound mix is another test set."""
    return hash_bytes([*clip.frames, b"" if clip.audio is None else clip.audio.tobytes()])


def _rows_of_unseen(name: str, entries: list[ClipEntry], row_of: Mapping[str, int]) -> NDArray[np.int64]:
    """(U,) rows of the clips that `entries` are other renderings of."""
    if unknown := [entry.clip_id for entry in entries if entry.clip_id not in row_of]:
        raise ValueError(f"{len(unknown)} clips of {name} are no test clips, such as {unknown[0]}")
    return np.array([row_of[entry.clip_id] for entry in entries])


def _unseen_tables(
    split: EmbeddedSplit, query_vectors: NDArray[np.float32], original: NDArray[np.float32]
) -> dict[str, QueryTable]:
    """Queries about unseen clips, which take the places of the original ones, and the same queries on these.

    Args:
        split: with G clips, some of which have other renderings.
        query_vectors: (Q, D)
        original: (Q, G) their similarity with the original clips.
    """
    tables: dict[str, QueryTable] = {}
    for name, unseen in split.unseen.items():
        similarity = original.copy()
        similarity[:, unseen.rows] = query_vectors @ unseen.clips.T
        clip_ids = {split.clip_ids[row] for row in unseen.rows}
        for group, scores in ((ORIGINAL, original), (UNSEEN, similarity)):
            rows = split.queries.groups_about(clip_ids, f"{group}/{name}")
            tables |= split.queries.tables({"both": scores}, split.clip_ids, rows)
    return tables


def _captions_as_queries(split: EmbeddedSplit, similarity: NDArray[np.float32], pairs: IntArray) -> QueryTable:
    ids = tuple(f"{clip}#{index}" for index, clip in enumerate(split.caption_clips))
    return QueryTable(ids, split.caption_clips, ranks(similarity, pairs))


def _clips_as_queries(split: EmbeddedSplit, similarity: NDArray[np.float32], pairs: IntArray) -> QueryTable:
    return QueryTable(split.clip_ids, split.clip_ids, ranks(similarity.T, pairs[:, ::-1]))
