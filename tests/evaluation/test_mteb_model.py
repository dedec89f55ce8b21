"""MTEB's own task classes, on toy data, give the results that the model's vectors imply."""

import io
import json
import wave
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Audio, Dataset, DatasetDict, Image, Video
from mteb.abstasks.retrieval import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.abstasks.zeroshot_classification import AbsTaskZeroShotClassification
from PIL import Image as Picture

from clip4vla.clips.format import Clip
from clip4vla.evaluation.mteb_model import MtebModel, find_tasks, main_scores, run_tasks
from clip4vla.inference.embedder import Embedder
from tests.inference.tiny import INFERENCE, RATE, SIZE, expert_model, tiny_model, write_video

TEXTS = ["the sound of a bell", "a dog barks", "perro"]
GENERAL: dict[str, Any] = {
    "description": "toy data",
    "reference": None,
    "dataset": {"path": "toy", "revision": "1"},
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
    "date": ("2026-01-01", "2026-01-01"),
    "dialect": [],
    "domains": [],
    "task_subtypes": [],
    "license": "cc0-1.0",
    "annotations_creators": "derived",
    "sample_creation": "created",
    "bibtex_citation": "",
}
FEATURES: dict[str, Callable[[], Any]] = {"audio": Audio, "video": Video, "image": Image}


def sound(seed: int) -> bytes:
    """A second of noise, as a WAV file."""
    samples = np.random.default_rng(seed).integers(-9000, 9000, RATE).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return buffer.getvalue()


def picture(seed: int, encoding: str) -> bytes:
    """Noise of the size that is stored, as PNG or JPEG."""
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (SIZE, SIZE, 3)).astype(np.uint8)
    Picture.fromarray(pixels).save(buffer, encoding, quality=INFERENCE.clips.jpeg_quality)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """The same number of encoded files of each kind; videos are in the folder, the others in the data set."""
    folder = tmp_path_factory.mktemp("videos")
    return {
        "video": [str(write_video(folder / f"{seed}.mp4", seed)) for seed in range(len(TEXTS))],
        "audio": [{"bytes": sound(seed), "path": f"{seed}.wav"} for seed in range(len(TEXTS))],
        "image": [{"bytes": picture(seed, "PNG"), "path": f"{seed}.png"} for seed in range(len(TEXTS))],
    }


def media_columns(files: dict[str, list[Any]], names: tuple[str, ...]) -> Dataset:
    dataset = Dataset.from_dict({name: files[name] for name in names})
    for name in names:
        dataset = dataset.cast_column(name, FEATURES[name]())
    return dataset


def retrieval_task(files: dict[str, list[Any]], media: tuple[str, ...]) -> AbsTaskRetrieval:
    """Text to media, in which the i-th text is right for the i-th document."""

    class Toy(AbsTaskRetrieval):
        metadata = TaskMetadata(
            type="Any2AnyRetrieval",
            name=f"ToyTextTo{''.join(media).title()}",
            main_score="ndcg_at_10",
            category="t2" + "".join(name[0] for name in media),
            modalities=["text", *media],
            **GENERAL,
        )

        def load_data(self, **_settings: object) -> None:
            ids = [f"d{row}" for row in range(len(TEXTS))]
            queries = Dataset.from_dict({"id": [f"q{row}" for row in range(len(TEXTS))], "text": TEXTS})
            self.dataset = {
                "default": {
                    "test": {
                        "queries": queries,
                        "corpus": media_columns(files, media).add_column("id", ids),
                        "relevant_docs": {f"q{row}": {f"d{row}": 1} for row in range(len(TEXTS))},
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    return Toy()


def classification_task(files: dict[str, list[Any]]) -> AbsTaskZeroShotClassification:
    class ToyAudioClassification(AbsTaskZeroShotClassification):
        input_column_name = "audio"
        metadata = TaskMetadata(
            type="AudioZeroshotClassification",
            name="ToyAudioClassification",
            main_score="accuracy",
            category="a2t",
            modalities=["audio", "text"],
            **GENERAL,
        )

        def load_data(self, **_settings: object) -> None:
            dataset = media_columns(files, ("audio",)).add_column("label", list(range(len(TEXTS))))
            self.dataset = DatasetDict({"test": dataset})
            self.data_loaded = True

        def get_candidate_labels(self) -> list[str]:
            return TEXTS

    return ToyAudioClassification()


def models() -> dict[str, Embedder]:
    return {"mean": Embedder(tiny_model(), INFERENCE), "experts": Embedder(expert_model(), INFERENCE)}


def ndcg(similarity: np.ndarray) -> float:
    """Of rows whose right column is the one of the same number."""
    places = (similarity > np.diag(similarity)[:, None]).sum(axis=1)
    return float(np.mean(1 / np.log2(2 + places)))


@pytest.mark.parametrize("media", [("audio",), ("video",), ("image",), ("video", "audio")], ids="-".join)
@pytest.mark.parametrize("fusion", ["mean", "experts"])
def test_retrieval_ranks_by_the_inner_product(
    fusion: str, media: tuple[str, ...], files: dict[str, list[Any]], tmp_path: Path
) -> None:
    embedder = models()[fusion]
    result = run_tasks(MtebModel(embedder, "team/toy", "1"), [retrieval_task(files, media)], tmp_path)
    if media == ("image",):
        clips = [Clip("", (picture(seed, "JPEG"),), None, ()) for seed in range(len(TEXTS))]
    else:
        paths = {name: write_files(files[name], tmp_path / name) for name in media}
        clips = [embedder.read(path) for path in paths[media[0]]]
    if media == ("video", "audio"):
        sounds = [embedder.read(path).audio for path in paths["audio"]]
        clips = [replace(clip, audio=sound) for clip, sound in zip(clips, sounds, strict=True)]
    modality = "both" if len(media) == 2 else "audio" if media == ("audio",) else "video"
    expected = ndcg(embedder.encode_text(TEXTS) @ embedder.embed_by_modality(clips)[modality].T)
    (score,) = main_scores(result).values()
    assert score == pytest.approx(expected, abs=1e-4)


def write_files(files: list[Any], folder: Path) -> list[Path]:
    if isinstance(files[0], str):
        return [Path(file) for file in files]
    folder.mkdir()
    for file in files:
        (folder / file["path"]).write_bytes(file["bytes"])
    return [folder / file["path"] for file in files]


@pytest.mark.parametrize("fusion", ["mean", "experts"])
def test_sounds_are_classified_by_the_nonverbal_token(fusion: str, files: dict[str, list[Any]], tmp_path: Path) -> None:
    embedder = models()[fusion]
    result = run_tasks(MtebModel(embedder, "team/toy", "1"), [classification_task(files)], tmp_path)
    clips = [embedder.read(path) for path in write_files(files["audio"], tmp_path / "audio")]
    texts = embedder.encode_text(TEXTS, "nonverbal" if embedder.experts else None)
    found = (embedder.embed_audio(clips, "nonverbal") @ texts.T).argmax(axis=1)
    expected = float((found == np.arange(len(TEXTS))).mean())
    assert main_scores(result) == {"mteb/ToyAudioClassification/test/main_score": pytest.approx(expected)}
    (file,) = tmp_path.rglob("ToyAudioClassification.json")
    assert json.loads(file.read_text())["scores"]["test"][0]["accuracy"] == pytest.approx(expected)


def test_an_unknown_task_is_an_error_of_one_line() -> None:
    with pytest.raises(ValueError, match="MTEB has no such task"):
        find_tasks(["NoSuchTask"])
