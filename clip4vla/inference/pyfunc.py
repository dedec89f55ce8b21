"""The served model: sentences or media files in, their vectors out; or media files in, captions out.

MLflow stores this file with each version and runs it to load the model (pyfunc "from code"), in a process that may
have nothing of this project but the package stored beside it. It only loads the run result and embeds or, where that
has a decoder, captions; a row that can't be answered gets the reason, and the others are answered.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
from mlflow.pyfunc import PythonModel, PythonModelContext

from clip4vla.clips.format import Clip
from clip4vla.config import InferenceConfig
from clip4vla.inference.embedder import BOTH, Embedder
from clip4vla.media.source import MediaError
from clip4vla.model.pretrained import CONFIG_FILE

BATCH = 16
"""Rows that pass through the towers at once."""


class Served(PythonModel):
    """Embeds each row of a table by its `text` or by the file at its `media` path, or captions that file.

    The model's config is an `InferenceConfig`, so that a file is read here as in training.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the run result that was stored with this version."""
        directory = Path(context.artifacts[CONFIG_FILE]).parent
        self._embedder = Embedder.open(directory, InferenceConfig.model_validate(context.model_config))
        self._captions = self._embedder.inference.generation is not None
        self._column = "caption" if self._captions else "embedding"

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """One row per row of `model_input`, whose columns are `text`, `media` (a path on this machine), or both.

        Returns:
            `embedding`, D numbers or null, whose inner products are scores, or `caption`, a sentence or null; and
            `error`, null or the reason.
        """
        answers: list[dict[str, Any]] = []
        rows = [{name: _given(row.get(name)) for name in ("text", "media")} for row in model_input.to_dict("records")]
        for start in range(0, len(rows), BATCH):
            answers += self._answer(rows[start : start + BATCH])
        return pd.DataFrame(answers, columns=[self._column, "error"], dtype=object, index=model_input.index)

    def _answer(self, rows: list[dict[str, str | None]]) -> list[dict[str, Any]]:
        texts: dict[int, str] = {}
        clips: dict[int, Clip] = {}
        errors: dict[int, str] = {}
        for place, row in enumerate(rows):
            match row:
                case {"text": str(text), "media": None} if not self._captions:
                    texts[place] = text
                case {"text": None, "media": str(media)}:
                    try:
                        clips[place] = self._embedder.read(Path(media))
                    except MediaError as error:
                        errors[place] = str(error)
                case _ if not self._captions:
                    errors[place] = "a row needs either a text or a media path"
                case _:
                    errors[place] = "a row needs a media path, and no text: this model generates captions"
        answer = self._caption(clips) if self._captions else self._embed(texts, clips)
        return [{self._column: answer.get(place), "error": errors.get(place)} for place in range(len(rows))]

    def _embed(self, texts: dict[int, str], clips: dict[int, Clip]) -> dict[int, list[float]]:
        vectors: dict[int, list[float]] = {}
        if texts:
            vectors |= zip(texts, self._embedder.encode_text(list(texts.values())).tolist(), strict=True)
        if clips:
            both = self._embedder.embed_clips(list(clips.values()), BOTH).both
            assert both is not None
            vectors |= zip(clips, both.tolist(), strict=True)
        return vectors

    def _caption(self, clips: dict[int, Clip]) -> dict[int, str]:
        return dict(zip(clips, self._embedder.caption_clips(list(clips.values())), strict=True)) if clips else {}


def _given(value: Any) -> str | None:
    """A cell's text, None where it is empty or missing."""
    return value if isinstance(value, str) and value else None


mlflow.models.set_model(Served())
