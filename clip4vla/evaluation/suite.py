"""The benchmark of a model: retrieval both ways by modality, and what each audio token hears.

In: a model and the clips of a test split. Out: `Scores`. Nothing is trained or chosen here.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F  # noqa: N812

from clip4vla.audio.frontend import max_samples
from clip4vla.batch import Batch
from clip4vla.clips.format import Clip
from clip4vla.clips.loader import ClipStore, collate
from clip4vla.clips.loader import View as ClipView
from clip4vla.evaluation.probe import Labels, probe_scores
from clip4vla.evaluation.rerank import nearest, rerank
from clip4vla.evaluation.retrieval import correspondence, ranks
from clip4vla.evaluation.scores import QueryTable, Scores, fingerprint, summarise
from clip4vla.model.clip4vla import Clip4Vla, Features, View
from clip4vla.model.percepts import Percepts
from clip4vla.model.text import Tokenizer
from clip4vla.params import AudioToken, EvaluateParams, TrainingParams
from clip4vla.records import MODALITIES, Modality, Text

VIEW_OF: dict[Modality, View] = {"vision": "video", "audio": "audio", "both": "both"}
"""The model's view of a clip for each modality."""
PROBED: tuple[AudioToken, ...] = ("verbal", "nonverbal")


@dataclass(frozen=True)
class Listed:
    """A test clip without its pictures and sound."""

    clip_id: str
    texts: tuple[Text, ...]
    digest: str
    """Of its pictures and sound: a test set whose sound was mixed anew is another test set."""


@dataclass(frozen=True)
class Gallery:
    """A test split, embedded: what is compared, and which caption belongs to which clip."""

    clip_ids: tuple[str, ...]
    caption_clips: tuple[str, ...]
    sentences: tuple[str, ...]
    """(Q,) the captions."""
    captions: NDArray[np.float32]
    """(Q, D)"""
    clips: dict[Modality, NDArray[np.float32]]
    """(G, D) by modality."""
    test_set: str
    reranked: NDArray[np.float32] | None = None
    """(Q, G), `similarity("both")` after the second opinion; None where there is none."""

    def similarity(self, modality: Modality) -> NDArray[np.float32]:
        """(Q, G) cosine of every caption with every clip."""
        return self.captions @ self.clips[modality].T


class Judge:
    """Embeds and scores one model.

    Args:
        model: in evaluation mode; moved to the GPU where there is one.
        training: whose frames and words the model was trained with.
    """

    def __init__(self, model: Clip4Vla, training: TrainingParams, evaluate: EvaluateParams) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.params = evaluate
        tokenize = Tokenizer(model.architecture.name, min(training.words, model.context_length))
        samples = max_samples(model.audio_params, model.image_size)
        self.view = ClipView(training.frames, model.image_size, samples, tokenize)

    def gallery(self, store: ClipStore, audio_token: AudioToken) -> Gallery:
        """Embed the captions and, by each modality, the clips of `store`."""
        parts, clips = self._embed_clips(store, audio_token, tuple(VIEW_OF.values()))
        captions = [(clip.clip_id, text.text) for clip in clips for text in clip.texts]
        vectors = {m: getattr(parts, VIEW_OF[m]).cpu().numpy() for m in MODALITIES}
        return Gallery(
            clip_ids=tuple(clip.clip_id for clip in clips),
            caption_clips=tuple(clip_id for clip_id, _ in captions),
            sentences=tuple(text for _, text in captions),
            captions=self.embed_texts([text for _, text in captions]),
            clips=vectors,
            test_set=fingerprint(captions, "".join(clip.digest for clip in clips)),
        )

    @torch.inference_mode()
    def rerank(self, gallery: Gallery, store: ClipStore, audio_token: AudioToken) -> Gallery:
        """The same gallery with a second opinion on the nearest clips of every caption, as many as the params say.

        Raises:
            ValueError: the model scores no pairs.
        """
        parts = [
            self.model.perceive(self._collated(batch), audio_token=audio_token, modalities="both")
            for batch in batches(store, self.params.batch_size)
        ]
        percepts, similarity = Percepts.concatenate(parts), gallery.similarity("both")
        items = nearest(similarity, self.params.rerank)
        captions = torch.from_numpy(gallery.captions).to(self.device)
        scores = []
        for query, clips in enumerate(torch.from_numpy(items).to(self.device)):
            text = captions[query].expand(len(clips), -1)
            scores.append(self.model.cross_scores(text, percepts.take(clips)).float().cpu())
        return replace(gallery, reranked=rerank(similarity, items, torch.stack(scores).numpy()))

    def score(self, gallery: Gallery, probe: dict[str, float] | None = None) -> Scores:
        """Retrieval both ways by modality with 95 % intervals, joined by the values of a probe."""
        queries: dict[str, QueryTable] = {}
        for modality in MODALITIES:
            similarity = gallery.similarity(modality)
            queries[f"text_to_clip/{modality}"] = _captions_as_queries(gallery, similarity)
            queries[f"clip_to_text/{modality}"] = _clips_as_queries(gallery, similarity)
        if gallery.reranked is not None:
            queries["text_to_clip/reranked"] = _captions_as_queries(gallery, gallery.reranked)
        return summarise(gallery.test_set, queries, self.params.bootstrap, self.params.seed, probe)

    def probe(self, store: ClipStore, labels: Labels) -> dict[str, float]:
        """How often the audio embedding finds the sound and the spoken words of a clip, per type token."""
        texts = {kind: self.embed_texts(choices) for kind, choices in labels.choices.items()}
        values: dict[str, float] = {}
        for token in PROBED:
            features, clips = self._embed_clips(store, token, ("audio",))
            assert features.audio is not None
            audio = features.audio.cpu().numpy()
            values |= probe_scores(str(token), audio, [clip.clip_id for clip in clips], texts, labels)
        return values

    @torch.inference_mode()
    def embed_texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors (Q, D)."""
        parts = []
        for start in range(0, len(sentences), self.params.batch_size):
            tokens = self.view.tokenize(sentences[start : start + self.params.batch_size]).to(self.device)
            parts.append(F.normalize(self.model.encode_text(tokens).float(), dim=1).cpu())
        return torch.cat(parts).numpy()

    @torch.inference_mode()
    def _embed_clips(
        self, store: ClipStore, audio_token: AudioToken, views: tuple[View, ...]
    ) -> tuple[Features, list[Listed]]:
        parts: list[Features] = []
        listed: list[Listed] = []
        for batch in batches(store, self.params.batch_size):
            parts.append(self.model(self._collated(batch), audio_token=audio_token, views=views))
            listed += [Listed(clip.clip_id, clip.texts, digest(clip)) for clip in batch]
        return Features.concatenate(parts), listed

    def _collated(self, clips: list[Clip]) -> Batch:
        """Clips without their texts, on the model's device."""
        return collate(clips, [[Text("")]] * len(clips), self.view, None).to(self.device)


def batches(store: ClipStore, size: int) -> Iterator[list[Clip]]:
    """All clips in their order, `size` at a time."""
    for start in range(0, len(store), size):
        yield store.take(range(start, min(start + size, len(store))))


def digest(clip: Clip) -> str:
    """What tells the pictures and sound of one clip from another's."""
    stored = hashlib.sha256(b"".join(clip.frames))
    stored.update(b"" if clip.audio is None else clip.audio.tobytes())
    return stored.hexdigest()


def _captions_as_queries(gallery: Gallery, similarity: NDArray[np.float32]) -> QueryTable:
    pairs = correspondence(gallery.caption_clips, gallery.clip_ids)
    ids = tuple(f"{clip}#{index}" for index, clip in enumerate(gallery.caption_clips))
    return QueryTable(ids, gallery.caption_clips, ranks(similarity, pairs))


def _clips_as_queries(gallery: Gallery, similarity: NDArray[np.float32]) -> QueryTable:
    pairs = correspondence(gallery.clip_ids, gallery.caption_clips)
    return QueryTable(gallery.clip_ids, gallery.clip_ids, ranks(similarity.T, pairs))
