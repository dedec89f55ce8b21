"""The served model, loaded as a consumer loads it, from what the registry stores and in a process of its own."""

import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch

from clip4vla.embedding import Outlook
from clip4vla.evaluation.retrieval import QueryRanks
from clip4vla.evaluation.scores import QueryTable, summarise
from clip4vla.media.encode import encode
from clip4vla.model.checkpoints import save_model
from clip4vla.model.clip4vla import Clip4Vla
from clip4vla.model.text import Tokenizer
from clip4vla.model.towers import find_architecture
from clip4vla.params import (
    AudioParams,
    CaptionParams,
    ClipsParams,
    ModelParams,
    OptimizerParams,
    SearchParams,
    TrainingParams,
)
from clip4vla.records import Decision
from clip4vla.registry.store import Registry, save_pyfunc
from clip4vla.tracking import open_tracker, tracking_uri
from flows.leash import leashed
from tests.project import REPOSITORY
from tests.servers import free_port, serving

CLIPS = ClipsParams(
    frames=3,
    size=64,
    jpeg_quality=90,
    max_seconds=5.0,
    verbal_above=None,
    dask=None,
    workers=0,
    max_reject_fraction=0.0,
)
AUDIO = AudioParams(
    sample_rate=16000,
    n_fft=512,
    hop=None,
    tiles=2,
    recipe="masked",
    freq_mask_fraction=0.05,
    time_mask_fraction=0.15,
    mask_width=9,
)
MODEL = ModelParams(
    architecture="stamp-small",
    weights=None,
    fusion="mean",
    fusion_layers=1,
    audio_token="both",
    temperature="learned",
)
OPTIMIZER = OptimizerParams(
    lr=1e-3,
    text_lr_ratio=1.0,
    vision_lr_ratio=1.0,
    betas=(0.9, 0.98),
    eps=1e-6,
    weight_decay=0.0,
    warmup=0.1,
    clip_norm=1.0,
)
TRAINING = TrainingParams(
    epochs=1, batch_size=1, micro_batch_size=1, frames=2, words=16, sentences=1, time_shift=False, optimizer=OPTIMIZER
)

OUTLOOK = Outlook.of(CLIPS, TRAINING)
CAPTIONING = CaptionParams(
    **TRAINING.model_dump(),
    modalities="both",
    modality_dropout=0.0,
    min_words=0,
    label_smoothing=0.0,
    vocabulary="corpus",
)


def tiny_model() -> Clip4Vla:
    architecture = find_architecture("stamp-small", None)
    config = json.loads(json.dumps(architecture.config))
    config["embed_dim"] = 32
    config["vision_cfg"] |= {"width": 64, "layers": 1, "head_width": 32}
    config["text_cfg"] |= {"width": 64, "layers": 1, "heads": 2}
    torch.manual_seed(0)
    return Clip4Vla(MODEL, AUDIO, replace(architecture, config=config)).eval()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model and three media files, one of them broken."""
    folder = tmp_path_factory.mktemp("serving")
    save_model(tiny_model(), folder / "run")
    (folder / "run" / "run.json").write_text("{}")
    save_pyfunc(folder / "model", folder / "run", OUTLOOK)
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        frames = rng.integers(0, 255, (8, 64, 64, 3)).astype(np.uint8)
        encode(folder / f"{name}.mp4", frames, 8, rng.uniform(-0.5, 0.5, 16000).astype(np.float32), 16000)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def model(folder: Path) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(str(folder / "model"))


def test_texts_and_files_become_unit_vectors_and_errors_stay_in_their_row(model, folder: Path) -> None:
    rows = [
        ("a dog barks", None),
        (None, str(folder / "one.mp4")),
        (None, str(folder / "broken.mp4")),
        (None, str(folder / "missing.mp4")),
        ("a dog barks", str(folder / "one.mp4")),
        (None, None),
        ("a cat", None),
        (None, str(folder / "two.mp4")),
    ]
    answers = model.predict(pd.DataFrame(rows, columns=["text", "media"], index=range(10, 18)))
    assert list(answers.index) == list(range(10, 18))
    errors = answers["error"].tolist()
    assert [error is None for error in errors] == [True, True, False, False, False, False, True, True]
    assert errors[2].startswith("corrupt: ")
    assert errors[3].startswith("missing: ")
    assert errors[4] == errors[5] == "a row needs either a text or a media path"
    vectors = [vector for vector in answers["embedding"] if vector is not None]
    assert len(vectors) == 4
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.abs(np.array(vectors[0]) - np.array(vectors[2])).max() > 1e-3
    assert np.abs(np.array(vectors[1]) - np.array(vectors[3])).max() > 1e-3


@pytest.mark.parametrize("column", ["text", "media"])
def test_one_column_is_enough(model, folder: Path, column: str) -> None:
    value = {"text": "a dog barks", "media": str(folder / "one.mp4")}[column]
    answers = model.predict(pd.DataFrame({column: [value]}))
    assert answers["error"].tolist() == [None]
    assert len(answers["embedding"][0]) == 32


def test_the_answer_to_a_row_does_not_depend_on_the_others(model, folder: Path) -> None:
    many = model.predict(pd.DataFrame({"media": [str(folder / "one.mp4"), str(folder / "two.mp4")] * 9}))
    alone = model.predict(pd.DataFrame({"media": [str(folder / "two.mp4")]}))
    np.testing.assert_allclose(np.stack(many["embedding"])[1::2], np.stack([alone["embedding"][0]] * 9), atol=1e-5)


def test_texts_are_embedded_as_the_model_does(model) -> None:
    text = "a dog barks while someone says perro and the rain falls on the roof of the old house by the sea"
    with torch.inference_mode():
        features = tiny_model().encode_text(Tokenizer("stamp-small", TRAINING.words)([text]))
    expected = torch.nn.functional.normalize(features, dim=1)[0]
    found = model.predict(pd.DataFrame({"text": [text]}))["embedding"][0]
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-5)


def test_a_version_serves_with_the_code_it_was_stored_with(folder: Path) -> None:
    """In a fresh process, whatever is installed there: the stored package comes first."""
    code = (
        "import json, sys, mlflow, pandas as pd\n"
        "model = mlflow.pyfunc.load_model(sys.argv[1])\n"
        "import clip4vla\n"
        "answer = model.predict(pd.DataFrame({'text': ['a cat']}))\n"
        "print(json.dumps([clip4vla.__file__, len(answer['embedding'][0])]))\n"
    )
    command = [sys.executable, "-c", code, str(folder / "model")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=True)
    file, width = json.loads(done.stdout.splitlines()[-1])
    assert Path(file) == folder / "model" / "code" / "clip4vla" / "__init__.py"
    assert width == 32


def test_no_caches_are_stored(folder: Path) -> None:
    stored = [path.name for path in (folder / "model" / "code").rglob("*") if path.is_file()]
    assert "stamp-small.json" in stored
    assert not [name for name in stored if name.endswith(".pyc")]


def test_the_signature_says_what_goes_in_and_out(model) -> None:
    signature = model.metadata.signature
    assert signature.inputs.input_names() == ["text", "media"]
    assert signature.outputs.input_names() == ["embedding", "error"]
    assert not any(column.required for column in signature.inputs.inputs)


def test_requirements_are_pinned(folder: Path) -> None:
    lines = (folder / "model" / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in [line.split("+")[0] for line in lines]
    assert all("==" in line for line in lines)


@pytest.mark.slow
def test_the_champion_answers_a_rest_request_with_texts_and_videos(folder: Path, tmp_path: Path) -> None:
    """`mlflow models serve` from the registry alone, in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("DVC_ROOT", raising=False)
        registry = Registry(tmp_path)
        with open_tracker(tmp_path).start("finetune", "tiny", {}) as run:
            pass
        assert run.run_id is not None
        table = QueryTable(("q",), ("c",), QueryRanks(np.ones(1), np.ones((1, 3))))
        scores = summarise("tiny", {"text_to_clip/both": table}, 100, 0)
        version = registry.register(run.run_id, folder / "run", scores, "clip4vla", CLIPS, TRAINING)
        assert registry.promote("clip4vla", version, Decision(True, ()), None).promote
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/clip4vla@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["MLFLOW_TRACKING_URI"] = tracking_uri(tmp_path)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    rows = [{"text": "a cow moos"}, {"media": str(folder / "one.mp4")}, {"media": "/nowhere.mp4"}]
    with serving(leashed(command), f"{url}/ping", environment | {"PYTHONPATH": str(REPOSITORY)}, tmp_path / "log"):
        request = urllib.request.Request(
            f"{url}/invocations",
            json.dumps({"dataframe_records": rows}).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            predictions = json.loads(answer.read())["predictions"]
    assert [len(row["embedding"] or ()) for row in predictions] == [32, 32, 0]
    assert [row["error"] for row in predictions] == [None, None, "missing: no file /nowhere.mp4"]
    np.testing.assert_allclose(np.linalg.norm(predictions[1]["embedding"]), 1, atol=1e-5)


@pytest.fixture(scope="module")
def writer(folder: Path) -> mlflow.pyfunc.PyFuncModel:
    """A model that writes captions, as it is stored and loaded."""
    vocabulary = Tokenizer("stamp-small", 12).vocabulary(["a dog barks", "perro"])
    plain = tiny_model()
    torch.manual_seed(0)
    save_model(Clip4Vla(plain.params, plain.audio_params, plain.architecture, vocabulary), folder / "writing")
    (folder / "writing" / "run.json").write_text("{}")
    outlook = Outlook.of(CLIPS, CAPTIONING, SearchParams(beam=2, length_penalty=1.0))
    save_pyfunc(folder / "writer", folder / "writing", outlook)
    return mlflow.pyfunc.load_model(str(folder / "writer"))


def test_files_become_captions_and_errors_stay_in_their_row(writer, folder: Path) -> None:
    files = ["one.mp4", "broken.mp4", "two.mp4"]
    answers = writer.predict(pd.DataFrame({"media": [*(str(folder / name) for name in files), None]}))
    assert list(answers.columns) == ["caption", "error"]
    assert [isinstance(caption, str) for caption in answers["caption"]] == [True, False, True, False]
    assert answers["error"][1].startswith("corrupt: ")
    assert answers["error"][3] == "a row needs a media path, and no text: this model writes captions"
    assert set(" ".join(answers["caption"][[0, 2]])) <= set("a dog barks perro")
    alone = writer.predict(pd.DataFrame({"media": [str(folder / "two.mp4")]}))
    assert alone["caption"][0] == answers["caption"][2]


def test_the_signature_of_a_writer_has_captions(writer) -> None:
    assert writer.metadata.signature.inputs.input_names() == ["media"]
    assert writer.metadata.signature.outputs.input_names() == ["caption", "error"]


def test_a_writer_is_registered_with_how_it_searches() -> None:
    with pytest.raises(ValueError, match="registered with how to search"):
        Outlook.of(CLIPS, CAPTIONING)
