"""A model with experts in use: the score is one inner product, and a search says and sets what it listens for."""

from pathlib import Path

import numpy as np
import pytest
import torch

import clip4vla
from clip4vla.__main__ import main
from clip4vla.inference.embedder import Embedder
from clip4vla.inference.index import EXPERT_OF, Index, IndexedModel, build
from clip4vla.media.encode import encode, encode_mp3
from clip4vla.model.pretrained import save_model
from tests.inference.tiny import INFERENCE, RATE, SIZE, WIDTH, expert_model, save_retrieval, write_video
from tests.markup import parse

EXPERTS = ("video", "verbal", "nonverbal")
SENTENCES = ["a cow moos", "a picture of a cow", "someone says vaca", "a dog barks while the rain falls on the roof"]


@pytest.fixture(scope="module")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("experts")
    save_model(expert_model(), directory, INFERENCE)
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos with sound, one without, and a sound."""
    folder = tmp_path_factory.mktemp("media")
    rng = np.random.default_rng(4)
    for seed, name in enumerate(("one.mp4", "two.mp4")):
        write_video(folder / name, seed)
    encode(folder / "silent.mp4", rng.integers(0, 255, (4, SIZE, SIZE, 3)).astype(np.uint8), 4, None, RATE)
    (folder / "sound.mp3").write_bytes(encode_mp3(rng.integers(-9000, 9000, (1, RATE)).astype(np.int16), RATE))
    return folder


@pytest.fixture(scope="module")
def media(folder: Path) -> list[Path]:
    return [folder / name for name in ("one.mp4", "two.mp4", "silent.mp4", "sound.mp3")]


@pytest.fixture(scope="module")
def model(model_directory: Path) -> Embedder:
    return clip4vla.load(model_directory)


@torch.inference_mode()
def clip_vectors(model: Embedder, media: list[Path]) -> np.ndarray:
    """(clips, experts, D): unit vectors of the video and of the sound by token, the learned one where it is missing."""
    experts = model.model.experts
    assert experts is not None
    clips = [model.read(path) for path in media]
    video = model.embed_clips(clips, ("video",))
    assert video.video is not None
    by_token = [model.embed_clips(clips, ("audio",), token).audio for token in EXPERTS[1:]]
    vectors = torch.stack([video.video, *(audio for audio in by_token if audio is not None)], dim=1)
    present = torch.stack([video.has_video, video.has_audio, video.has_audio], dim=1)
    for row, there in enumerate(present):
        for column in torch.flatten(torch.argwhere(~there)).tolist():
            vectors[row, column] = experts.clips.missing[column]
    return vectors.numpy()


def query_vectors(model: Embedder, sentences: list[str]) -> np.ndarray:
    """(sentences, experts, D): a unit query for each expert."""
    parts = model.encode_text(sentences).reshape(-1, len(EXPERTS), WIDTH)
    return parts / np.linalg.norm(parts, axis=2, keepdims=True)


def test_the_inner_product_is_the_weighted_sum_of_cosines_by_expert(model: Embedder, media: list[Path]) -> None:
    found = model.encode_text(SENTENCES) @ model.encode_media(media).T
    cosines = np.einsum("ned,ced->nce", query_vectors(model, SENTENCES), clip_vectors(model, media))
    weights = model.weigh(SENTENCES)
    expected = np.einsum("nce,ne->nc", cosines, weights / np.linalg.norm(weights, axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(model.encode_text(SENTENCES), axis=1), 1, atol=1e-5)
    assert np.ptp(expected) > 0.05


def test_vectors_have_a_part_for_each_expert(model: Embedder, media: list[Path]) -> None:
    assert model.experts == EXPERTS
    for method, values in ((model.encode_text, SENTENCES), (model.encode_media, media)):
        assert method(values).shape == (len(values), 3 * WIDTH)
        assert method([]).shape == (0, 3 * WIDTH)


def test_the_weights_of_a_sentence_are_positive_and_sum_to_1(model: Embedder) -> None:
    weights = model.weigh(SENTENCES)
    assert weights.shape == (len(SENTENCES), 3)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-6)
    assert np.ptp(weights, axis=0).min() > 0.01
    assert model.weigh([]).shape == (0, 3)


def test_a_missing_modality_scores_nothing_alone_and_a_learned_vector_stands_for_it_together(
    model: Embedder, media: list[Path]
) -> None:
    vectors = model.embed_by_modality([model.read(path) for path in media])
    assert [(vectors["video"] != 0).any(axis=1).tolist(), (vectors["audio"] != 0).any(axis=1).tolist()] == [
        [True, True, True, False],
        [True, True, False, True],
    ]
    assert model.model.experts is not None
    missing = model.model.experts.clips.missing.detach().numpy()
    parts = vectors["both"].reshape(len(media), 3, WIDTH)
    np.testing.assert_allclose(parts[2, 1:], missing[1:], atol=1e-6)
    np.testing.assert_allclose(parts[3, 0], missing[0], atol=1e-6)
    np.testing.assert_allclose((vectors["video"] + vectors["audio"])[:2], vectors["both"][:2], atol=1e-6)
    np.testing.assert_allclose(vectors["both"], model.encode_media(media), atol=1e-5)


def test_the_sound_under_a_token_is_that_expert_s_part(model: Embedder, media: list[Path]) -> None:
    clips = [model.read(path) for path in media]
    audio = model.embed_by_modality(clips)["audio"]
    parts = [model.embed_audio(clips, token) for token in ("verbal", "nonverbal")]
    np.testing.assert_array_equal(sum(parts), audio)
    assert [(part.reshape(-1, 3, WIDTH)[0] != 0).any(axis=1).tolist() for part in parts] == [
        [False, True, False],
        [False, False, True],
    ]
    with pytest.raises(ValueError, match="the model has no expert of the audio token 'both'"):
        model.embed_audio(clips, "both")


def test_an_expert_that_the_model_lacks_is_named(model: Embedder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the model has no expert 'speech'; it has video, verbal, nonverbal"):
        model.expert_mask("speech")
    plain = clip4vla.load(save_retrieval(tmp_path))
    assert plain.experts == ()
    with pytest.raises(ValueError, match="the model has no expert 'video'; it has none"):
        plain.expert_mask("video")
    with pytest.raises(ValueError, match=r"model\.fusion is 'mean': only 'experts' have weights"):
        plain.weigh(["a cow"])
    with pytest.raises(ValueError, match="only 'experts' have weights"):
        plain.weigh([])


def test_one_expert_is_compared_by_its_cosine_whatever_its_weight(model: Embedder, media: list[Path]) -> None:
    found = model.encode_text(SENTENCES, "verbal") @ model.encode_media(media).T
    both, weights = model.encode_text(SENTENCES), model.weigh(SENTENCES)
    at = EXPERTS.index("verbal")
    lengths = np.linalg.norm(weights, axis=1) / weights[:, at]
    alone = both * model.expert_mask("verbal") * lengths[:, None]
    np.testing.assert_allclose(found, alone @ model.encode_media(media).T, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(model.encode_text(SENTENCES, "verbal"), axis=1), 1, atol=1e-5)


def test_a_single_string_is_not_a_list_of_sentences(model: Embedder) -> None:
    with pytest.raises(ValueError, match="sentences"):
        model.weigh("a cow")


def index_of(model_directory: Path, folder: Path, directory: Path) -> Index:
    about = IndexedModel(name="clip4vla", version="3", content="abc", inference=INFERENCE, clip_seconds=2.0)
    build(folder, directory, model_directory, about)
    return Index(directory)


@pytest.fixture(scope="module")
def index(model_directory: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return index_of(model_directory, folder, tmp_path_factory.mktemp("index") / "index")


def test_a_search_ranks_by_the_inner_product(index: Index, model: Embedder, media: list[Path]) -> None:
    for sentence in SENTENCES:
        scores = (model.encode_text([sentence]) @ model.encode_media(media).T)[0]
        hits = index.search(sentence, top=4)
        assert [hit.path for hit in hits] == [media[row].name for row in np.argsort(-scores)]
        np.testing.assert_allclose([hit.scores["both"] for hit in hits], np.sort(scores)[::-1], atol=1e-5)
        assert {hit.path: set(hit.scores) for hit in hits} == {
            "one.mp4": {"video", "audio", "both"},
            "two.mp4": {"video", "audio", "both"},
            "silent.mp4": {"video", "both"},
            "sound.mp3": {"audio", "both"},
        }


@pytest.mark.parametrize(("listen", "expert"), EXPERT_OF.items())
def test_a_search_may_listen_for_one_thing(
    index: Index, model: Embedder, media: list[Path], listen: str, expert: str
) -> None:
    modality = "video" if expert == "video" else "audio"
    there = [path for path in media if path.name != {"video": "sound.mp3", "audio": "silent.mp4"}[modality]]
    column = EXPERTS.index(expert)
    for sentence in SENTENCES:
        cosines = query_vectors(model, [sentence])[0, column] @ clip_vectors(model, there)[:, column].T
        hits = index.search(sentence, top=4, listen=listen)  # type: ignore[arg-type]
        assert [hit.path for hit in hits] == [there[row].name for row in np.argsort(-cosines)]
        for score in (modality, "both"):
            found = [hit.scores[score] for hit in hits]  # type: ignore[index]
            np.testing.assert_allclose(found, np.sort(cosines)[::-1], atol=1e-5)


def test_a_search_names_its_weights_largest_first(index: Index, model: Embedder) -> None:
    names = {"video": "picture", "verbal": "speech", "nonverbal": "sound"}
    for sentence in SENTENCES:
        found = index.listens_for(sentence)
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert sum(found.values()) == pytest.approx(1)
        expected = dict(zip(map(names.__getitem__, EXPERTS), model.weigh([sentence])[0].tolist(), strict=True))
        assert found == pytest.approx(expected)
    assert index.listens_for(SENTENCES[0], "speech") == {"speech": 1.0}


def test_an_audio_expert_without_a_token_listens_for_audio(folder: Path, tmp_path: Path) -> None:
    save_model(expert_model(("none",)), tmp_path / "run", INFERENCE)
    index = index_of(tmp_path / "run", folder, tmp_path / "index")
    assert set(index.listens_for("a cow moos")) == {"picture", "audio"}
    assert len(index.search("a cow moos", top=4, listen="picture")) == 3
    with pytest.raises(ValueError, match="the model has no expert 'nonverbal'; it has video, none"):
        index.search("a cow moos", top=4, listen="sound")


def test_a_model_without_experts_has_no_weights_and_listens_for_everything(folder: Path, tmp_path: Path) -> None:
    index = index_of(save_retrieval(tmp_path / "run"), folder, tmp_path / "index")
    assert index.listens_for("a cow moos") == {}
    with pytest.raises(ValueError, match="the model has no expert 'verbal'; it has none"):
        index.search("a cow moos", top=4, listen="speech")


def run(arguments: list[str]) -> None:
    """Run a command that must succeed."""
    with pytest.raises(SystemExit, match="0"):
        main(arguments)


@pytest.fixture
def searched(index: Index, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Arguments of `clip4vla search` in the index, run in a folder of its own."""
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.chdir(tmp_path)
    return ["search", "a cow moos", "--index", str(index._directory)]


def test_the_command_line_and_its_page_show_what_was_listened_for(
    searched: list[str], index: Index, capsys: pytest.CaptureFixture[str]
) -> None:
    run([*searched, "--html", "found.html"])
    shown = [f"{name} {100 * weight:.0f} %" for name, weight in index.listens_for("a cow moos").items()]
    assert f"listened for: {', '.join(shown)}\n" in capsys.readouterr().out
    header = parse(Path("found.html").read_text(encoding="utf-8")).one("header")
    facts = dict(zip((part.text for part in header.all("dt")), (part.text for part in header.all("dd")), strict=True))
    assert facts["listened for"] == ", ".join(shown)


def test_the_command_line_listens_for_one_thing(searched: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run([*searched, "--listen", "sound", "--html", "found.html"])
    said = capsys.readouterr().out
    assert "listened for: sound 100 %\n" in said
    assert "sound.mp3" in said
    assert "silent.mp4" not in said
    assert "sound 100 %" in [part.text for part in parse(Path("found.html").read_text(encoding="utf-8")).all("dd")]
    with pytest.raises(SystemExit, match="2"):
        main([*searched, "--listen", "smell"])
