"""The scratch project: lengths are cut and nothing else, and it shares nothing with the project."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from clip4vla.config import Config, load_config
from clip4vla.model.towers import build_clip, find_architecture, load_clip_weights
from clip4vla.rehearsal import scratch
from clip4vla.rehearsal.scratch import CUT, cut, environment, make_scratch_project
from clip4vla.rehearsal.weights import write_random_weights
from tests.project import REPOSITORY, presets_of_published_corpora, read_config, write_config

COUNTS = {"train": 2, "val": 2, "test": 2}
SAME = (
    *("clips.frames", "clips.size", "clips.max_seconds", "clips.jpeg_quality", "audio", "model.architecture"),
    *(
        "model.fusion",
        "trainer",
        "stampscenes.seconds",
        "stampscenes.size",
        "stampscenes.fps",
        "evaluation.beam_search",
    ),
)
OF_TRAININGS = ("batch_size", "micro_batch_size", "frames", "inference_frames", "max_tokens", "optimizer")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A project without data."""
    directory = tmp_path / "source"
    directory.mkdir()
    scratch.copy_project(REPOSITORY, directory)
    shutil.copy(REPOSITORY / "params.yaml", directory)
    return directory


@pytest.fixture
def without_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is encoded, and there is no git or DVC."""
    monkeypatch.setattr(scratch, "_make_inputs", lambda _: None)
    monkeypatch.setattr(scratch, "initialise", lambda _: None)


def value(config: Config, place: str) -> Any:
    found: Any = config
    for key in place.split("."):
        found = getattr(found, key)
    return found


@pytest.mark.usefixtures("without_inputs")
@pytest.mark.parametrize("preset", presets_of_published_corpora())
def test_lengths_are_cut_and_sizes_stay(preset: str, source: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    made = make_scratch_project(source, tmp_path / "root", [preset])
    wanted, config = load_config(source / "params.yaml", preset), load_config(tmp_path / "root/params.yaml")
    assert made.wanted == wanted
    assert config.preset == (preset, CUT)
    for place in SAME:
        assert value(config, place) == value(wanted, place), place
    for training in ("pretraining", "retrieval", "captioning"):
        assert value(config, training).epochs == 1
        for key in OF_TRAININGS:
            assert getattr(value(config, training), key) == getattr(value(wanted, training), key)
    assert len(config.ablation.arms) == 1
    assert {n: (c.adapter, c.annotations, c.media) for n, c in config.corpora.items()} == {
        n: (c.adapter, c.annotations, c.media) for n, c in wanted.corpora.items()
    }
    assert not config.gates.retrieval.floors


@pytest.mark.usefixtures("without_inputs")
def test_edits_of_params_and_several_presets_are_rehearsed(source: Path, tmp_path: Path) -> None:
    tree = read_config(source)
    tree["seed"] = 11
    write_config(source, tree)
    (tmp_path / "root").mkdir()
    made = make_scratch_project(source, tmp_path / "root", ["howto100m", "msrvtt-1ka"], clips=40)
    assert made.config.seed == 11
    assert set(made.config.corpora) == {"howto100m", "msrvtt"}
    assert made.counts == {"train": 40, "val": 2, "test": 2}
    assert read_config(source) == tree


def test_places_outside_of_the_project_are_not_used(source: Path) -> None:
    tree = read_config(source)
    tree["corpora"]["mine"] = {"adapter": "folder", "role": "finetuning", "annotations": "/mine", "media": "../mine"}
    tree["gates"]["retrieval"]["export_on_promotion"] = "/exports"
    tree["evaluation"]["queries"] = "/mine/queries.json"
    write_config(source, tree)
    changes, notes = cut(load_config(source / "params.yaml"), COUNTS)
    mine = {"annotations": "data/raw/mine/annotations", "media": "data/raw/mine/media"}
    assert changes["corpora"] == {"mine": mine}
    assert changes["gates"]["retrieval"]["export_on_promotion"] == "made/exports"
    assert changes["evaluation"] == {"queries": None}
    assert any("evaluation.queries is left out: /mine/queries.json is of other clips" in note for note in notes)


def test_what_cannot_be_rehearsed_is_said_in_a_sentence(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^there is no preset 'nonesuch'; there are default, audiocaps, "):
        make_scratch_project(source, tmp_path / "root", ["msrvtt", "nonesuch"])
    with pytest.raises(ValueError, match=r"is not a project: it lacks params\.yaml"):
        make_scratch_project(tmp_path, tmp_path / "root", [])
    (source / "presets/mine.yaml").write_text("model: {architecture: ViT-B-32, weights: nonesuch}")
    with pytest.raises(ValueError, match=r"model.weights is 'nonesuch': there is no such file, nor a tag of ViT-B-32"):
        make_scratch_project(source, tmp_path / "root", ["mine"])
    assert not (tmp_path / "root").exists()


def test_commands_in_it_know_nothing_of_outer_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    outer = ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE", "GIT_DIR")
    for name in outer:
        monkeypatch.setenv(name, "/outer")
    assert not set(outer) & set(environment())


@pytest.mark.filterwarnings("ignore:.*TorchScript")
def test_random_weights_are_loaded_as_openais_are(tmp_path: Path) -> None:
    architecture = find_architecture("stamp-small", None)
    write_random_weights(architecture, tmp_path / "weights.pt")
    load_clip_weights(build_clip(architecture), architecture, str(tmp_path / "weights.pt"))
