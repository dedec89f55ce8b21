"""The public API: sentences and files in, vectors whose inner product is the score of retrieval, or captions, out."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.nn import functional as F  # noqa: N812

import clip4vla
from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.ingest import ingest
from clip4vla.config import BeamSearchConfig, EvaluationConfig, InferenceConfig, load_config
from clip4vla.corpora.manifest import write_manifest
from clip4vla.evaluation.retrieval_evaluator import RetrievalEvaluator
from clip4vla.inference.embedder import Embedder
from clip4vla.media.encode import encode_mp3
from clip4vla.media.source import MediaError
from clip4vla.records import SourceRecord, Text
from tests.inference.tiny import (
    AUDIO,
    CAPTIONING_INFERENCE,
    CLIPS,
    INFERENCE,
    RATE,
    RETRIEVAL,
    SENTENCES,
    WIDTH,
    save_captioning,
    save_retrieval,
    tiny_model,
    write_video,
)
from tests.project import REPOSITORY

PARAMS = REPOSITORY / "params.yaml"


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_retrieval(tmp_path_factory.mktemp("retrieval"))


@pytest.fixture(scope="module")
def captioning_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_captioning(tmp_path_factory.mktemp("captioning"))


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two short videos, one that is longer than a stored clip, and a sound."""
    folder = tmp_path_factory.mktemp("media")
    noise = np.random.default_rng(4).integers(-9000, 9000, (1, RATE)).astype(np.int16)
    (folder / "sound.mp3").write_bytes(encode_mp3(noise, RATE))
    names = {"one.mp4": 1.0, "two.mp4": 1.0, "long.mp4": 6.0}
    videos = [write_video(folder / name, seed, seconds) for seed, (name, seconds) in enumerate(names.items())]
    return [*videos, folder / "sound.mp3"]


@pytest.fixture
def model(model_directory: Path) -> Embedder:
    return clip4vla.load(model_directory)


def test_sentences_become_unit_vectors_of_the_text_tower(model: Embedder) -> None:
    sentences = ["a cow moos", "a dog barks while someone says perro and the rain falls on the roof of the old house"]
    vectors = model.encode_text(sentences)
    assert (vectors.shape, vectors.dtype) == ((2, WIDTH), np.float32)
    plain = tiny_model()
    with torch.inference_mode():
        features = plain.encode_text(plain.tokenizer(RETRIEVAL.max_tokens)(sentences))
    np.testing.assert_allclose(vectors, F.normalize(features, dim=1).numpy(), atol=1e-6)


def test_files_become_unit_vectors_whatever_the_batch(model_directory: Path, media: list[Path]) -> None:
    vectors = Embedder.open(model_directory, batch_size=3).encode_media(media)
    assert (vectors.shape, vectors.dtype) == ((4, WIDTH), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    alone = Embedder.open(model_directory, batch_size=1).encode_media([str(path) for path in media])
    np.testing.assert_allclose(vectors, alone, atol=1e-5)
    similarity = vectors @ vectors.T
    assert (similarity - np.eye(4)).max() < 0.999


@pytest.mark.parametrize("method", ["encode_text", "encode_media"])
def test_nothing_becomes_an_empty_array(model: Embedder, method: str) -> None:
    vectors = getattr(model, method)([])
    assert (vectors.shape, vectors.dtype) == ((0, WIDTH), np.float32)


@pytest.mark.parametrize(
    ("method", "value"), [("encode_text", "a cow"), ("encode_media", "one.mp4"), ("encode_media", Path("one.mp4"))]
)
def test_a_single_value_in_place_of_a_list_is_an_error(model: Embedder, method: str, value: object) -> None:
    with pytest.raises(ValueError, match=r"must be a list, not .*(a cow|one\.mp4)"):
        getattr(model, method)(value)


def test_the_inner_product_is_the_score_that_retrieval_ranks_by(
    model: Embedder, media: list[Path], tmp_path: Path
) -> None:
    """The same files, once through manifest, clips and evaluation, once through the public API."""
    sentences = [f"{path.stem} of the clips" for path in media]
    records = [SourceRecord(p.stem, p.name, "test", (Text(s),)) for p, s in zip(media, sentences, strict=True)]
    write_manifest(records, media[0].parent, tmp_path / "manifest")
    ingest(tmp_path / "manifest" / "manifest.parquet", media[0].parent, tmp_path / "clips", CLIPS, AUDIO)
    dataset = ClipDataset([tmp_path / "clips" / "test.lance"])
    split = RetrievalEvaluator(model, EvaluationConfig(bootstrap=100)).embed(dataset)
    rows = [media.index(path) for clip_id in split.clip_ids for path in media if path.stem == clip_id]
    expected = split.similarity("both")
    scores = model.encode_text(split.sentences) @ model.encode_media([media[row] for row in rows]).T
    np.testing.assert_allclose(scores, expected, atol=1e-5)
    assert np.ptp(expected) > 1e-3


def test_a_file_is_read_as_the_pipeline_stores_it(model: Embedder, media: list[Path], tmp_path: Path) -> None:
    long = media[2]
    write_manifest([SourceRecord("long", long.name, "test", (Text("a"),))], long.parent, tmp_path / "manifest")
    ingest(tmp_path / "manifest" / "manifest.parquet", long.parent, tmp_path / "clips", CLIPS, AUDIO)
    [stored] = ClipDataset([tmp_path / "clips" / "test.lance"]).take([0])
    found = model.read(long)
    assert found.frames == stored.frames
    assert found.audio is not None
    assert found.audio.shape == (1, RATE * CLIPS.max_seconds)
    np.testing.assert_array_equal(found.audio, stored.audio)


@pytest.mark.parametrize("method", ["encode_media", "caption"])
def test_a_file_that_cannot_be_read_raises_with_its_name_and_the_reason(
    captioning_directory: Path, media: list[Path], tmp_path: Path, method: str
) -> None:
    call: Callable[[list[Path]], object] = getattr(clip4vla.load(captioning_directory), method)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(MediaError, match=r"^corrupt: .*broken\.mp4"):
        call([media[0], broken])
    with pytest.raises(MediaError, match=r"^missing: no file .*nowhere\.mp4"):
        call([tmp_path / "nowhere.mp4"])


def test_files_become_captions_whatever_the_batch(captioning_directory: Path, media: list[Path]) -> None:
    captions = clip4vla.load(captioning_directory).caption(media)
    assert len(captions) == len(media)
    assert all(isinstance(caption, str) for caption in captions)
    assert set("".join(captions)) <= set(" ".join(SENTENCES))
    assert Embedder.open(captioning_directory, batch_size=1).caption(media) == captions
    assert len(set(captions)) > 1


def test_captions_follow_the_stored_beam_search(captioning_directory: Path, media: list[Path], tmp_path: Path) -> None:
    greedy = CAPTIONING_INFERENCE.with_beam_search(BeamSearchConfig(beam=1))
    stored = clip4vla.load(save_captioning(tmp_path, greedy)).caption(media)
    assert stored == Embedder.open(captioning_directory, greedy).caption(media)


def test_a_model_without_a_caption_decoder_does_not_caption(model: Embedder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="this model has no caption decoder: fine-tune it for captioning first"):
        model.caption([tmp_path / "nowhere.mp4"])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with model directories that earlier versions wrote."""
    save_retrieval(tmp_path / "retrieval", inference=None)
    save_captioning(tmp_path / "captioning", inference=None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_an_earlier_model_directory_is_read_by_params_yaml_with_a_warning(
    project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tree = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
    tree["evaluation"]["beam_search"] = {"beam": 2}
    (project / "params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    config = load_config(project / "params.yaml")
    retrieval = clip4vla.load("retrieval").inference
    assert retrieval == InferenceConfig.of(config.clips, config.retrieval)
    assert "config.json in retrieval does not record how media are read; params.yaml is used" in caplog.text
    captioning = clip4vla.load("captioning").inference
    assert captioning == InferenceConfig.of(config.clips, config.captioning, BeamSearchConfig(beam=2))


@pytest.mark.usefixtures("project")
def test_an_earlier_model_directory_without_params_yaml_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"config\.json in retrieval does not record .* there is no params\.yaml here"):
        clip4vla.load("retrieval")


@pytest.mark.usefixtures("project")
def test_an_earlier_model_directory_is_read_by_the_config_of_its_caller() -> None:
    assert Embedder.open(Path("retrieval"), INFERENCE).inference == INFERENCE


def test_a_directory_without_a_model_is_an_error(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=rf"^{directory} holds no model: config\.json is missing$"):
            clip4vla.load(directory)


def test_a_clip_without_frames_has_no_video_vector_and_one_without_sound_no_audio_vector(
    model: Embedder, media: list[Path]
) -> None:
    sound = model.read(media[3])
    silent = replace(model.read(media[0]), audio=None)
    embeddings = model.embed_clips([sound, silent], ("video", "audio", "both"))
    assert embeddings.has_video.tolist() == [False, True]
    assert embeddings.has_audio.tolist() == [True, False]
    assert embeddings.video is not None
    assert embeddings.audio is not None
    assert embeddings.both is not None
    assert torch.equal(embeddings.both[0], embeddings.audio[0])
    assert torch.equal(embeddings.both[1], embeddings.video[1])
