"""A trained model outside of training: sentences and media files in, vectors or captions out.

The public API, search, serving and evaluation all use it, so that a file is read here exactly as in training: decoded,
stored and read back like a training clip.

Shapes: N sentences, files or clips, D embedding width.
"""

import logging
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from clip4vla.clips.batch import Batch
from clip4vla.clips.format import Clip, decode_row
from clip4vla.clips.transform import collate
from clip4vla.config import AudioToken, GenerationConfig, InferenceConfig, load_config
from clip4vla.inference.media_row import read_row
from clip4vla.model.clip4vla import Clip4Vla, EmbeddingName, Embeddings
from clip4vla.model.media_features import MediaFeatures
from clip4vla.model.pretrained import load_model, read_inference_config
from clip4vla.records import MODALITIES, Modality, Text

log = logging.getLogger(__name__)

BATCH = 32
"""Sentences or clips that pass through the towers at once."""
AUDIO: tuple[EmbeddingName, ...] = ("audio",)
BOTH: tuple[EmbeddingName, ...] = ("both",)
PARAMS = Path("params.yaml")

Item = TypeVar("Item")


class Embedder:
    """A model that embeds or captions, on a GPU where there is one.

    Args:
        model: any model; it is moved to the device and put into evaluation mode.
        inference: how it reads media and texts.
        batch_size: sentences or clips that pass through the towers at once.
    """

    def __init__(self, model: Clip4Vla, inference: InferenceConfig, batch_size: int = BATCH) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = model.to(self.device).eval()
        self.inference = inference
        self.batch_size = batch_size
        self._transform = model.clip_transform(inference.frames, inference.max_tokens)
        self._tokenizer = model.tokenizer(inference.max_tokens)

    @classmethod
    def open(cls, directory: Path, inference: InferenceConfig | None = None, batch_size: int = BATCH) -> "Embedder":
        """The model in `directory`, with its own way of reading media unless `inference` is given.

        A model directory that an earlier version wrote does not record it; then `params.yaml` of the working directory
        is used, with a warning.

        Raises:
            ValueError: the directory holds no model, or it is not recorded how it reads media.
        """
        model = load_model(directory)
        stored = inference or read_inference_config(directory)
        return cls(model, stored or _assumed_inference(directory, model), batch_size)

    @property
    def audio_token(self) -> AudioToken:
        """The type token that the model was fine-tuned with."""
        return self.model.config.audio_token

    @property
    def sample_rate(self) -> int:
        """Sample rate of the sound of a clip from `read`, in Hz."""
        return self.model.audio_config.sample_rate

    def encode_text(self, sentences: Sequence[str], expert: str | None = None) -> NDArray[np.float32]:
        """Unit vectors (N, D) of sentences; their inner product with those of `encode_media` is retrieval's score.

        Args:
            sentences: N sentences.
            expert: the one of `experts` to compare, in place of the weights of each sentence: the score is its cosine.

        Raises:
            ValueError: `sentences` is a single string, or the model has no such expert.
        """
        listed = _as_list(sentences, "sentences")
        parts = [self._encode_texts(listed[rows]) for rows in self._rows(len(listed))]
        vectors = np.concatenate(parts) if parts else self._no_vectors()
        if expert is None:
            return vectors
        alone = vectors * self.expert_mask(expert)
        return np.asarray(alone / np.linalg.norm(alone, axis=1, keepdims=True), dtype=np.float32)

    def encode_media(self, paths: Sequence[str | Path]) -> NDArray[np.float32]:
        """Vectors (N, D) of media files, by video and audio together.

        Raises:
            MediaError: a file can't be used; the message has its name and the reason.
            ValueError: `paths` is a single path.
        """
        parts = []
        listed = _as_list(paths, "paths")
        for rows in self._rows(len(listed)):
            clips = [self.read(Path(path)) for path in listed[rows]]
            both = self.embed_clips(clips, BOTH).both
            assert both is not None
            parts.append(both.cpu().numpy())
        return np.concatenate(parts) if parts else self._no_vectors()

    def caption(self, paths: Sequence[str | Path]) -> list[str]:
        """A caption of each media file.

        Raises:
            MediaError: a file can't be used; the message has its name and the reason.
            ValueError: the model has no caption decoder, or `paths` is a single path.
        """
        self._require_generation()
        captions: list[str] = []
        listed = _as_list(paths, "paths")
        for rows in self._rows(len(listed)):
            captions += self.caption_clips([self.read(Path(path)) for path in listed[rows]])
        return captions

    def read(self, path: Path, start_s: float = 0.0, end_s: float | None = None) -> Clip:
        """A span of a file as the pipeline would store it: the same frames, size, JPEG quality and longest sound.

        Raises:
            MediaError: the file can't be used.
        """
        return decode_row(read_row(path, self.inference.clips, self.sample_rate, start_s, end_s))

    @torch.inference_mode()
    def embed_clips(
        self, clips: Sequence[Clip], names: Collection[EmbeddingName], audio_token: AudioToken | None = None
    ) -> Embeddings:
        """The named embeddings of clips, which pass through the towers at once.

        Args:
            clips: N clips.
            names: which embeddings.
            audio_token: None: the model's own.
        """
        token = self.audio_token if audio_token is None else audio_token
        embeddings: Embeddings = self.model(self._collate(clips), audio_token=token, names=names)
        return embeddings

    def embed_by_modality(self, clips: Sequence[Clip]) -> dict[Modality, NDArray[np.float32]]:
        """Vectors (N, D) of clips by modality, comparable with those of `encode_text`; zero where a clip lacks it."""
        embeddings = self.embed_clips(clips, MODALITIES if self.model.experts is None else BOTH)
        if self.model.experts is None:
            return {modality: getattr(embeddings, modality).cpu().numpy() for modality in MODALITIES}
        assert embeddings.both is not None
        both, width = embeddings.both.cpu(), self.model.width
        video, audio = both.clone(), both.clone()
        video[:, width:], audio[:, :width] = 0, 0
        video[~embeddings.has_video.cpu()], audio[~embeddings.has_audio.cpu()] = 0, 0
        return {"video": video.numpy(), "audio": audio.numpy(), "both": both.numpy()}

    def embed_audio(self, clips: Sequence[Clip], audio_token: AudioToken) -> NDArray[np.float32]:
        """Vectors (N, D) of the sound of clips under a type token, comparable with those of `encode_text`.

        Raises:
            ValueError: the model has experts, but none of this token.
        """
        if self.model.experts is None:
            audio = self.embed_clips(clips, AUDIO, audio_token).audio
            assert audio is not None
            return np.asarray(audio.cpu())
        if audio_token not in self.experts:
            raise ValueError(f"the model has no expert of the audio token {audio_token!r}")
        return self.embed_by_modality(clips)["audio"] * self.expert_mask(str(audio_token))

    @property
    def experts(self) -> tuple[str, ...]:
        """The experts that the text weighs, `video` and the audio tokens; none where the model has no experts."""
        return () if self.model.experts is None else ("video", *map(str, self.model.config.audio_experts))

    def expert_mask(self, expert: str) -> NDArray[np.float32]:
        """(D,) 1 at the places of an expert, 0 elsewhere.

        Raises:
            ValueError: the model has no such expert.
        """
        if expert not in self.experts:
            raise ValueError(f"the model has no expert {expert!r}; it has {', '.join(self.experts) or 'none'}")
        mask = np.zeros((len(self.experts), self.model.width), np.float32)
        mask[self.experts.index(expert)] = 1
        return mask.reshape(-1)

    def weigh(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Weights (N, E) of `experts` for sentences.

        Raises:
            ValueError: the model has no experts, or `sentences` is a single string.
        """
        return self.weights_of(self.encode_text(sentences))

    def weights_of(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Weights (N, E) of `experts` for the sentences whose vectors (N, D) `encode_text` has made.

        Raises:
            ValueError: the model has no experts.
        """
        if not self.experts:
            raise ValueError(f"model.fusion is {self.model.config.fusion!r}: only 'experts' have weights")
        lengths = np.linalg.norm(vectors.reshape(len(vectors), len(self.experts), self.model.width), axis=2)
        return np.asarray(lengths / lengths.sum(axis=1, keepdims=True), dtype=np.float32)

    @torch.inference_mode()
    def media_features(self, clips: Sequence[Clip], modalities: Modality = "both") -> MediaFeatures:
        """Features of the frames and tiles of clips, which pass through the towers at once."""
        return self.model.encode_media(self._collate(clips), audio_token=self.audio_token, modalities=modalities)

    def caption_clips(self, clips: Sequence[Clip]) -> list[str]:
        """A caption of each clip.

        Raises:
            ValueError: the model has no caption decoder.
        """
        return self.generate(self.media_features(clips, self._require_generation().modalities))

    @torch.inference_mode()
    def generate(self, media: MediaFeatures) -> list[str]:
        """A caption of each clip whose features are given.

        Raises:
            ValueError: the model has no caption decoder.
        """
        generation = self._require_generation()
        tokens = self.model.generate(
            media,
            beam=generation.beam,
            length=self._tokenizer.max_tokens - 1,
            length_penalty=generation.length_penalty,
        )
        return [self._tokenizer.decode(row) for row in tokens.cpu()]

    @torch.inference_mode()
    def _encode_texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        return np.asarray(self.model.embed_queries(self._tokenizer(sentences).to(self.device)).cpu())

    def _collate(self, clips: Sequence[Clip]) -> Batch:
        """Clips without captions, on the model's device."""
        return collate(clips, [[Text("")]] * len(clips), self._transform, None).to(self.device)

    def _require_generation(self) -> GenerationConfig:
        if self.inference.generation is None:
            raise ValueError("this model has no caption decoder: fine-tune it for captioning first")
        return self.inference.generation

    def _rows(self, number: int) -> list[slice]:
        return [slice(start, start + self.batch_size) for start in range(0, number, self.batch_size)]

    def _no_vectors(self) -> NDArray[np.float32]:
        return np.zeros((0, self.model.width * max(1, len(self.experts))), np.float32)


def _as_list(values: Sequence[Item], what: str) -> list[Item]:
    """The values, which must not be a single string: a string is a sequence too, of its characters."""
    if isinstance(values, str | Path):
        raise ValueError(f"{what} must be a list, not {values!r}")
    return list(values)


def _assumed_inference(directory: Path, model: Clip4Vla) -> InferenceConfig:
    """How `params.yaml` reads media, for a model directory that does not record it.

    Raises:
        ValueError: there is no such file.
    """
    if not PARAMS.is_file():
        raise ValueError(
            f"config.json in {directory} does not record how media are read (an earlier version wrote it), and there "
            f"is no {PARAMS} here to read it from: load it in the folder of its project"
        )
    log.warning("config.json in %s does not record how media are read; %s is used", directory, PARAMS)
    config = load_config(PARAMS)
    training = config.retrieval if model.decoder is None else config.captioning
    return InferenceConfig.of(config.clips, training, config.evaluation.beam_search)
