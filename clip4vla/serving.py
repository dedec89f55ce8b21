"""The served model: sentences or media files in, their unit vectors out.

MLflow stores this file with each version and runs it to load the model (pyfunc "from code"), in a process that may
know nothing of this project but the package stored beside it. It only loads the run result and embeds; a row
that can't be embedded says why, and the others are answered.
"""

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
from mlflow.pyfunc import PythonModel, PythonModelContext

from clip4vla.clips.format import Clip
from clip4vla.embedding import Embedder, Outlook
from clip4vla.media.decode import MediaError
from clip4vla.model.checkpoints import CONFIG_FILE

BATCH = 16
"""Rows that pass through the towers at once."""


class ServedModel(PythonModel):
    """Embeds each row of a table by its `text` or by the file at its `media` path.

    The model's config is an `Outlook`, so that a file is seen here as in training.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the run result that was stored with this version."""
        directory = Path(context.artifacts[CONFIG_FILE]).parent
        self._embedder = Embedder(directory, Outlook.model_validate(context.model_config))

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """One row per row of `model_input`, whose columns are `text`, `media` (a path on this machine), or both.

        Returns:
            `embedding`, D numbers of unit length or null, and `error`, null or the reason.
        """
        answers: list[dict[str, Any]] = []
        rows = [{name: _given(row.get(name)) for name in ("text", "media")} for row in model_input.to_dict("records")]
        for start in range(0, len(rows), BATCH):
            answers += self._answer(rows[start : start + BATCH])
        return pd.DataFrame(answers, columns=["embedding", "error"], dtype=object, index=model_input.index)

    def _answer(self, rows: list[dict[str, str | None]]) -> list[dict[str, Any]]:
        texts: dict[int, str] = {}
        clips: dict[int, Clip] = {}
        errors: dict[int, str] = {}
        for place, row in enumerate(rows):
            match row:
                case {"text": str(text), "media": None}:
                    texts[place] = text
                case {"text": None, "media": str(media)}:
                    try:
                        clips[place] = self._embedder.read(Path(media))
                    except MediaError as error:
                        errors[place] = str(error)
                case _:
                    errors[place] = "a row needs either a text or a media path"
        vectors: dict[int, list[float]] = {}
        if texts:
            vectors |= zip(texts, self._embedder.embed_texts(list(texts.values())).tolist(), strict=True)
        if clips:
            both = self._embedder.embed_clips(list(clips.values()), {"both"}).both
            assert both is not None
            vectors |= zip(clips, both.tolist(), strict=True)
        return [{"embedding": vectors.get(place), "error": errors.get(place)} for place in range(len(rows))]


def _given(value: Any) -> str | None:
    """A cell's text, None where it is empty or missing."""
    return value if isinstance(value, str) and value else None


mlflow.models.set_model(ServedModel())
