"""A model for the `mteb` package (Massive Text Embedding Benchmark, arXiv 2210.07316): its inputs in, vectors out.

Sound and video are read from the encoded files of a data set by the project's own decoder, as in training, not by the
decoders of the `datasets` package; a picture is a video of one frame. What is compared:

- retrieval and all tasks without labels as text: the score that retrieval ranks by, of the modalities that there are;
- zero-shot classification of audio: the sound under the nonverbal token, with that expert where there are experts.

Shapes: N inputs, D width of the vectors.
"""

import io
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clip4vla.clips.format import Clip
from clip4vla.evaluation.zero_shot import TOKEN
from clip4vla.inference.embedder import Embedder
from clip4vla.records import Modality

if TYPE_CHECKING:
    from datasets import Dataset
    from mteb.abstasks import AbsTask
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.models_protocols import EncoderProtocol
    from mteb.results import ModelResult
    from torch.utils.data import DataLoader

MEDIA = ("video", "image", "audio")
AUDIO_CLASSIFICATION = "AudioZeroshotClassification"
"""MTEB's type of task."""


class MtebModel(AbsEncoder):
    """A model as MTEB calls it.

    Args:
        embedder: the model.
        name: `OWNER/NAME`, in MTEB's results.
        revision: of the model, in MTEB's results.
    """

    def __init__(self, embedder: Embedder, name: str, revision: str) -> None:
        self.model = embedder
        self.mteb_model_meta = describe(embedder, name, revision)

    def encode(
        self, inputs: "DataLoader[Any]", *, task_metadata: "TaskMetadata", **_settings: Any
    ) -> NDArray[np.float32]:
        """Vectors (N, D) of the texts or the media of `inputs`, comparable by their inner product.

        Raises:
            MediaError: a file can't be used.
            ValueError: an input has text and media, or neither.
        """
        dataset: Any = inputs.dataset
        media = [name for name in MEDIA if name in dataset.column_names]
        has_text = "text" in dataset.column_names
        if has_text == bool(media):
            raise ValueError(f"{task_metadata.name} has inputs of {dataset.column_names}: texts or media are needed")
        is_classification = task_metadata.type == AUDIO_CLASSIFICATION
        if has_text:
            expert = str(TOKEN) if is_classification and self.model.experts else None
            return self.model.encode_text(list(dataset["text"]), expert)
        return self._encode_media(dataset, media, is_classification)

    def _encode_media(self, dataset: "Dataset", media: Sequence[str], is_classification: bool) -> NDArray[np.float32]:
        encoded, size = _undecoded(dataset, media), self.model.batch_size
        parts = []
        for start in range(0, len(encoded), size):
            rows = (encoded[row] for row in range(start, min(start + size, len(encoded))))
            clips = [self._read(row, media) for row in rows]
            if is_classification:
                parts.append(self.model.embed_audio(clips, TOKEN))
            else:
                parts.append(self.model.embed_by_modality(clips)[_modality(media)])
        return np.concatenate(parts)

    def _read(self, row: Mapping[str, Any], media: Sequence[str]) -> Clip:
        """One clip of the frames of the video or image of a row and of its sound."""
        clips = {
            name: self._read_picture(row[name]) if name == "image" else self._read_file(row[name]) for name in media
        }
        sound = clips["audio"].audio if "audio" in clips else None
        pictures = next((clips[name].frames for name in ("video", "image") if name in clips), ())
        return replace(next(iter(clips.values())), frames=pictures, audio=sound)

    def _read_file(self, file: Mapping[str, Any]) -> Clip:
        if file["bytes"] is None:
            return self.model.read(Path(file["path"]))
        with tempfile.NamedTemporaryFile(suffix=Path(file["path"] or "").suffix) as copy:
            copy.write(file["bytes"])
            copy.flush()
            return self.model.read(Path(copy.name))

    def _read_picture(self, file: Mapping[str, Any]) -> Clip:
        """A clip of one frame, scaled and stored as those of a video are."""
        stored, jpeg = self.model.inference.clips, io.BytesIO()
        with Image.open(file["path"] if file["bytes"] is None else io.BytesIO(file["bytes"])) as opened:
            picture = ImageOps.exif_transpose(opened).convert("RGB")
        scale = stored.size / min(picture.size)
        picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.BICUBIC)
        picture.save(jpeg, "JPEG", quality=stored.jpeg_quality)
        return Clip("", (jpeg.getvalue(),), None, ())


def describe(embedder: Embedder, name: str, revision: str) -> ModelMeta:
    """What MTEB's results say about a model."""
    return ModelMeta(
        loader=None,
        name=name,
        revision=revision,
        release_date=None,
        languages=None,
        n_parameters=sum(parameter.numel() for parameter in embedder.model.parameters()),
        memory_usage_mb=None,
        max_tokens=embedder.inference.max_tokens,
        embed_dim=embedder.model.width * max(1, len(embedder.experts)),
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name="dot",
        use_instructions=False,
        training_datasets=None,
        modalities=["text", "image", "audio", "video"],
    )


def find_tasks(names: Sequence[str]) -> "list[AbsTask]":
    """MTEB's tasks of these names.

    Raises:
        ValueError: there is none of a name.
    """
    import mteb

    try:
        return [mteb.get_task(name) for name in names]
    except KeyError as error:
        raise ValueError(f"MTEB has no such task: {error.args[0]}") from error


def run_tasks(model: MtebModel, tasks: "Sequence[AbsTask]", out: Path) -> "ModelResult":
    """Run tasks; MTEB's result files go to `out/results/NAME/REVISION/TASK.json`."""
    import mteb

    encoder = cast("EncoderProtocol", model)
    return mteb.evaluate(
        encoder, tasks, cache=mteb.ResultCache(cache_path=out), overwrite_strategy="always", co2_tracker=False
    )


def main_scores(result: "ModelResult") -> dict[str, float]:
    """The main score of each task and split, by `mteb/TASK/SPLIT/main_score`, in MTEB's unit (mostly 0 to 1)."""
    return {
        f"mteb/{task.task_name}/{split}/main_score": float(np.mean([subset["main_score"] for subset in subsets]))
        for task in result.task_results
        for split, subsets in task.scores.items()
    }


def _undecoded(dataset: "Dataset", media: Sequence[str]) -> "Dataset":
    """The data set with the media as `bytes` or `path` of encoded files."""
    for name in media:
        feature = dataset.features[name]
        dataset = dataset.cast_column(name, replace(feature, decode=False))
    return dataset


def _modality(media: Sequence[str]) -> Modality:
    if "audio" not in media:
        return "video"
    return "audio" if len(media) == 1 else "both"
