"""The served model: sentences or media files in, their unit vectors out; or media files in, captions out.

MLflow stores this file with each version and runs it to load the model (pyfunc "from code"), in a process that may
know nothing of this project but the package stored beside it. It only loads the run result and embeds or, where that
has a decoder, captions; a row that can't be answered says why, and the others are answered.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
import torch
from mlflow.pyfunc import PythonModel, PythonModelContext
from torch.nn import functional as F  # noqa: N812

from clip4vla.audio.frontend import max_samples
from clip4vla.clips.format import Clip, decode_row, encode_row
from clip4vla.clips.loader import View, collate
from clip4vla.media.decode import MediaError, decode
from clip4vla.model.checkpoints import CONFIG_FILE, load_model
from clip4vla.model.text import Tokenizer
from clip4vla.params import ClipsParams
from clip4vla.records import SourceRecord, Text

BATCH = 16
"""Rows that pass through the towers at once."""


class Served(PythonModel):
    """Embeds each row of a table by its `text` or by the file at its `media` path, or captions that file.

    The model's config holds `clips` (how clips were stored, so that a file is seen here as in training), `frames`
    and `words`, and for captions `captions` (what is attended to, and how the best one is searched for).
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the run result that was stored with this version."""
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = load_model(Path(context.artifacts[CONFIG_FILE]).parent).to(self._device)
        config = context.model_config
        self._clips = ClipsParams.model_validate(config["clips"])
        self._captions = config.get("captions")
        params = self._model.params
        self._tokenizer = Tokenizer(params.architecture, config["words"])
        self._view = View(
            frames=config["frames"],
            image_size=self._model.image_size,
            max_samples=max_samples(self._model.audio_params, self._model.image_size),
            tokenize=self._tokenizer,
        )

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """One row per row of `model_input`, whose columns are `text`, `media` (a path on this machine), or both.

        Returns:
            `embedding`, D numbers of unit length or null, or `caption`, a sentence or null; and `error`, null or the
            reason.
        """
        column = "embedding" if self._captions is None else "caption"
        answers: list[dict[str, Any]] = []
        rows = [{name: _given(row.get(name)) for name in ("text", "media")} for row in model_input.to_dict("records")]
        for start in range(0, len(rows), BATCH):
            answers += self._answer(rows[start : start + BATCH])
        return pd.DataFrame(answers, columns=[column, "error"], dtype=object, index=model_input.index)

    def _answer(self, rows: list[dict[str, str | None]]) -> list[dict[str, Any]]:
        texts: dict[int, str] = {}
        clips: dict[int, Clip] = {}
        errors: dict[int, str] = {}
        for place, row in enumerate(rows):
            match row:
                case {"text": str(text), "media": None} if self._captions is None:
                    texts[place] = text
                case {"text": None, "media": str(media)}:
                    try:
                        clips[place] = self._read(Path(media))
                    except MediaError as error:
                        errors[place] = str(error)
                case _ if self._captions is None:
                    errors[place] = "a row needs either a text or a media path"
                case _:
                    errors[place] = "a row needs a media path, and no text: this model writes captions"
        if self._captions is not None:
            written = dict(zip(clips, self._caption(list(clips.values())), strict=True))
            return [{"caption": written.get(place), "error": errors.get(place)} for place in range(len(rows))]
        vectors = dict(zip(texts, self._embed_texts(list(texts.values())), strict=True))
        vectors |= dict(zip(clips, self._embed_clips(list(clips.values())), strict=True))
        return [{"embedding": vectors.get(place), "error": errors.get(place)} for place in range(len(rows))]

    def _read(self, path: Path) -> Clip:
        """The whole file as it would be stored: the same frames, size and JPEG as in training."""
        settings = self._clips
        span = decode(
            path,
            0.0,
            None,
            frames=settings.frames,
            short_side=settings.size,
            sample_rate=self._model.audio_params.sample_rate,
        )
        record = SourceRecord(str(path), str(path), "test", ())
        return decode_row(encode_row(record, span, settings.jpeg_quality))

    @torch.inference_mode()
    def _embed_texts(self, texts: list[str]) -> list[list[float]]:
        if not texts:
            return []
        features = self._model.encode_text(self._view.tokenize(texts).to(self._device))
        return F.normalize(features.float(), dim=1).tolist()

    @torch.inference_mode()
    def _embed_clips(self, clips: list[Clip]) -> list[list[float]]:
        if not clips:
            return []
        batch = collate(clips, [[Text("")]] * len(clips), self._view, None).to(self._device)
        features = self._model(batch, audio_token=self._model.params.audio_token, views={"both"})
        return features.both.tolist()

    @torch.inference_mode()
    def _caption(self, clips: list[Clip]) -> list[str]:
        if not clips:
            return []
        batch = collate(clips, [[Text("")]] * len(clips), self._view, None).to(self._device)
        settings = dict(self._captions)
        token, modalities = self._model.params.audio_token, settings.pop("modalities")
        percepts = self._model.perceive(batch, audio_token=token, modalities=modalities)
        length = min(self._tokenizer.words, self._model.context_length) - 1
        return [self._tokenizer.decode(row) for row in self._model.write(percepts, length=length, **settings).cpu()]


def _given(value: Any) -> str | None:
    """A cell's text, None where it is empty or missing."""
    return value if isinstance(value, str) and value else None


mlflow.models.set_model(Served())
