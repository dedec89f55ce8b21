"""What a training stage records of itself in MLflow, to compare runs by."""

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from clip4vla.config import load_config
from clip4vla.pipeline import training as stage
from clip4vla.pipeline.training import describe_objective, forget_results, run_name, run_training
from clip4vla.tracking.run import Run
from clip4vla.training.spec import TrainSpec
from clip4vla.utils.files import write_json
from tests.project import REPOSITORY
from tests.training.specs import make_spec

FILE = REPOSITORY / "params.yaml"


def test_an_objective_is_named_by_its_terms_and_their_weights() -> None:
    published = load_config(FILE, preset="published")
    assert describe_objective(published.pretraining, "sample") == (
        "text_audio + 2 video_audio + audio_audio + text_text + video_video"
    )
    assert describe_objective(published.captioning, "both") == "caption from both"


def test_the_name_of_a_run_says_what_is_trained_on_which_data_by_which_presets() -> None:
    config = load_config(FILE)
    assert run_name(config, "retrieval") == "retrieval · es · default"
    mine = config.corpora["stampscenes-captions"]
    own = config.model_copy(update={"corpora": {**config.corpora, "mine": mine}, "preset": ("paper", "howto100m")})
    assert run_name(own, "retrieval") == "retrieval · stampscenes-captions, mine · paper, howto100m"


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainSpec:
    """A training whose fingerprint is known, in a project of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(TrainSpec, "fingerprint", lambda self: f"seed{self.seed}")
    monkeypatch.setattr(stage, "log_datasets", lambda *_: None)

    @contextmanager
    def recorded(*_: Any, **__: Any) -> Iterator[Run]:
        run = Run()
        run.run_id = "abc"
        yield run

    monkeypatch.setattr(stage, "start_run", recorded)
    return make_spec(Path(), "mine").model_copy(update={"out": Path("runs/mine")})


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainSpec]:
    """The trainings that were started: each leaves a result."""
    started: list[TrainSpec] = []

    def train(spec: TrainSpec) -> None:
        started.append(spec)
        spec.out.mkdir(parents=True, exist_ok=True)
        save_file({"weight": torch.ones(1)}, spec.out / "model.safetensors")
        write_json(spec.out / "run.json", {"run_id": spec.run_id, "metrics": {}})

    monkeypatch.setattr(stage, "launch_with_retries", train)
    return started


def test_a_stage_that_fails_after_its_training_does_not_train_again(spec: TrainSpec, trained: list[TrainSpec]) -> None:
    assert run_training(spec, "retrieval", "first") == "abc"
    for path in (spec.out, spec.checkpoints):  # as DVC does before it runs the stage again
        shutil.rmtree(path, ignore_errors=True)
    assert run_training(spec, "retrieval", "again") == "abc"
    assert len(trained) == 1
    assert sorted(path.name for path in spec.out.iterdir()) == ["model.safetensors", "run.json"]


def test_other_settings_or_a_stage_that_succeeded_train(spec: TrainSpec, trained: list[TrainSpec]) -> None:
    run_training(spec, "retrieval", "first")
    run_training(spec.model_copy(update={"seed": 8}), "retrieval", "other")
    assert len(trained) == 2
    forget_results("mine")
    run_training(spec, "retrieval", "again")
    assert len(trained) == 3


def test_a_damaged_kept_result_is_made_again(
    spec: TrainSpec, trained: list[TrainSpec], caplog: pytest.LogCaptureFixture
) -> None:
    run_training(spec, "retrieval", "first")
    (trained[0].out / "model.safetensors").write_bytes(b"half")
    run_training(spec, "retrieval", "again")
    assert len(trained) == 2
    assert "a finished training is damaged and done again: " in caplog.text


@pytest.mark.parametrize("run_id", ["gone", ""])
def test_a_training_whose_run_is_gone_goes_on_in_a_new_one(
    spec: TrainSpec,
    trained: list[TrainSpec],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    run_id: str,
) -> None:
    monkeypatch.setattr(stage, "can_resume", lambda _root, run_id: run_id == "abc")
    note = spec.checkpoints / spec.fingerprint() / stage.RUN_ID_FILE
    note.parent.mkdir(parents=True)
    note.write_text(run_id)  # empty: as a power cut leaves a file that was not on the disk yet
    run_training(spec, "retrieval", "first")
    assert f"MLflow has no run {run_id!r} any more: the training goes on from its checkpoint" in caplog.text
    assert note.read_text() == "abc"
    assert len(trained) == 1


def test_what_follows_a_result_costs_a_warning_at_most(
    spec: TrainSpec, trained: list[TrainSpec], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(*_: object) -> dict[str, list[tuple[int, float]]]:
        raise ConnectionError("the server is gone\nfor good")

    monkeypatch.setattr(Run, "history", away)
    with caplog.at_level(logging.WARNING):
        run_training(spec, "retrieval", "first")
    assert caplog.messages == ["the figure of the losses is not in MLflow: ConnectionError: the server is gone"]
    assert spec.out.is_dir()
    assert len(trained) == 1
