"""The served model: sentences or media files in, their vectors out; or media files in, captions out.

MLflow stores this file with each version and runs it to load the model (pyfunc "from code"), in a process that may
have nothing of this project but the package stored beside it. It only loads the run result and embeds or, where that
has a decoder, captions.

Requests come from strangers. `ServingLimits` says what they may ask for; a row that breaks a limit, or that can't be
answered, gets the reason, and the others are answered. A request as a whole is refused with status 400.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd  # type: ignore[import-untyped]
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel, PythonModelContext

from clip4vla.clips.format import Clip
from clip4vla.config import InferenceConfig
from clip4vla.corpora.media_index import is_unicode
from clip4vla.inference.batching import Batcher
from clip4vla.inference.drift import read_reference
from clip4vla.inference.embedder import BOTH, Embedder
from clip4vla.inference.limits import ServingLimits
from clip4vla.inference.media_reader import MediaReader
from clip4vla.inference.media_row import ReadRequest
from clip4vla.inference.metrics import ServingMetrics
from clip4vla.media.source import MediaError
from clip4vla.records import CONFIG_FILE

BATCH = 32
"""Texts, or clips, of any requests that pass through the towers at once."""


@dataclass(frozen=True)
class RowError:
    """Why a row has no answer."""

    reason: str
    """One of a few words, as metrics count it."""
    message: str


class Served(PythonModel):
    """Embeds each row of a table by its `text` or by the file at its `media` path, or captions that file.

    The model's config is an `InferenceConfig`, so that a file is read here as in training.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the run result that was stored with this version, and start the readers of files."""
        directory = Path(context.artifacts[CONFIG_FILE]).parent
        self._embedder = Embedder.open(directory, InferenceConfig.model_validate(context.model_config), BATCH)
        self._limits = ServingLimits.from_environment()
        self._reader = None if self._limits.media_root is None else MediaReader(self._limits)
        self._captions = self._embedder.inference.generation is not None
        self._columns = ("media",) if self._captions else ("text", "media")
        self._answer_column = "caption" if self._captions else "embedding"
        self._metrics = ServingMetrics(read_reference(directory))
        if self._limits.metrics_port is not None:
            self._metrics.expose(self._limits.metrics_port)
        self._of_texts = Batcher(self._embed_texts, BATCH)
        self._of_clips = Batcher(self._embedder.caption_clips if self._captions else self._embed_clips, BATCH)

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,  # noqa: ARG002
    ) -> pd.DataFrame:
        """One row per row of `model_input`, whose columns are `text`, `media` (a path in the media root), or both.

        Returns:
            `embedding`, D numbers or null, whose inner products are scores, or `caption`, a sentence or null; and
            `error`, null or the reason.

        Raises:
            MlflowException: the table has other columns or too many rows, or it is none.
        """
        with self._metrics.request(refusal=MlflowException):
            self._check(model_input)
            rows = dict(enumerate(model_input.to_dict("records")))
            answers, errors = self._answer(rows)
        table = [
            {self._answer_column: answers.get(place), "error": errors[place].message if place in errors else None}
            for place in rows
        ]
        return pd.DataFrame(table, columns=[self._answer_column, "error"], dtype=object, index=model_input.index)

    def _answer(self, rows: Mapping[int, dict[Any, Any]]) -> tuple[dict[int, Any], dict[int, RowError]]:
        """Answers and errors, by the place of their row; metrics count both."""
        texts, media, errors = self._sort(rows)
        clips = self._read(media, errors)
        of_clips, of_texts = self._of_clips(list(clips.values())), self._of_texts(list(texts.values()))
        self._metrics.answered("media", of_clips)
        self._metrics.answered("text", of_texts)
        for error in errors.values():
            self._metrics.rejected(error.reason)
        return dict(zip((*clips, *texts), (*of_clips, *of_texts), strict=True)), errors

    def _check(self, table: object) -> None:
        names = " and ".join(self._columns)
        if not isinstance(table, pd.DataFrame):
            raise MlflowException.invalid_parameter_value(f"send dataframe_records with {names}")
        unknown = [repr(str(name)) for name in table.columns if name not in self._columns]
        if unknown or not len(table.columns):
            raise MlflowException.invalid_parameter_value(
                f"unknown columns: {', '.join(unknown) or 'none given'}; the columns are {names}"
            )
        if len(table) > self._limits.max_rows:
            raise MlflowException.invalid_parameter_value(
                f"{len(table):,} rows; a request may have {self._limits.max_rows:,}"
            )

    def _sort(self, rows: Mapping[int, dict[Any, Any]]) -> tuple[dict[int, str], dict[int, str], dict[int, RowError]]:
        """Texts, paths of media and errors, by the place of their row."""
        texts: dict[int, str] = {}
        media: dict[int, str] = {}
        errors: dict[int, RowError] = {}
        for place, row in rows.items():
            match {name: _given(row.get(name)) for name in ("text", "media")}:
                case {"text": str(text), "media": None} if not self._captions:
                    if len(text) > self._limits.max_characters:
                        message = f"{len(text):,} characters; a text may have {self._limits.max_characters:,}"
                        errors[place] = RowError("too_many_characters", message)
                    else:
                        texts[place] = text
                case {"text": None, "media": str(path)} if not is_unicode(path):
                    errors[place] = RowError("missing", f"no file {path!a}: its name isn't valid Unicode")
                case {"text": None, "media": str(path)}:
                    media[place] = path
                case _ if not self._captions:
                    errors[place] = RowError("no_input", "a row needs either a text or a media path")
                case _:
                    errors[place] = RowError("no_input", "a row needs a media path: this model generates captions")
        return texts, media, errors

    def _read(self, media: Mapping[int, str], errors: dict[int, RowError]) -> dict[int, Clip]:
        """The clips of files that can be read; the reasons of the others are added to `errors`."""
        if self._reader is None or self._limits.media_root is None:
            refused = RowError("no_media_root", "no files are served: CLIP4VLA_MEDIA_ROOT names no folder")
            errors |= dict.fromkeys(media, refused)
            return {}
        read, root = self._reader.read, self._limits.media_root
        clips = self._embedder.inference.clips

        def try_to_read(path: str) -> Clip | RowError:
            try:
                rate = self._embedder.sample_rate
                return read(ReadRequest(root=root, name=path, clips=clips, sample_rate=rate))
            except MediaError as error:
                return RowError(error.reason, str(error))

        with ThreadPoolExecutor(self._limits.readers) as pool:
            found = dict(zip(media, pool.map(try_to_read, media.values()), strict=True))
        errors |= {place: reason for place, reason in found.items() if isinstance(reason, RowError)}
        return {place: clip for place, clip in found.items() if isinstance(clip, Clip)}

    def _embed_texts(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self._embedder.encode_text(texts).tolist()
        return vectors

    def _embed_clips(self, clips: list[Clip]) -> list[list[float]]:
        both = self._embedder.embed_clips(clips, BOTH).both
        assert both is not None
        vectors: list[list[float]] = both.tolist()
        return vectors


def _given(value: Any) -> str | None:
    """A cell's text, None where it is empty or missing."""
    return value if isinstance(value, str) and value else None


mlflow.models.set_model(Served())
