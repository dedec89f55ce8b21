"""The served model, loaded as a consumer loads it, from what the registry stores and in a process of its own."""

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException

from clip4vla.config import BeamSearchConfig
from clip4vla.evaluation.retrieval_metrics import QueryRanks
from clip4vla.evaluation.scores import QueryTable, summarise
from clip4vla.inference.drift import EmbeddingStatistics, write_reference
from clip4vla.inference.embedder import Embedder
from clip4vla.records import Decision
from clip4vla.registry.registry import Registry
from clip4vla.registry.stored_model import save_pyfunc
from clip4vla.tracking.run import start_run
from clip4vla.tracking.store import tracking_uri
from clip4vla.utils.supervise import supervised
from tests.inference.tiny import (
    CAPTIONING_INFERENCE,
    INFERENCE,
    SENTENCES,
    WIDTH,
    save_captioning,
    save_retrieval,
    write_video,
)
from tests.project import REPOSITORY
from tests.servers import free_port, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model and three media files, one of them broken."""
    folder = tmp_path_factory.mktemp("serving")
    save_pyfunc(folder / "model", save_retrieval(folder / "run"), INFERENCE)
    for seed, name in enumerate(("one", "two")):
        write_video(folder / f"{name}.mp4", seed, fps=8)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def load(path: Path, **variables: object) -> mlflow.pyfunc.PyFuncModel:
    """The model at `path`, loaded with limits in environment variables."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(f"CLIP4VLA_{name.upper()}", str(value))
        return mlflow.pyfunc.load_model(str(path))


@pytest.fixture(scope="module")
def model(folder: Path) -> mlflow.pyfunc.PyFuncModel:
    return load(folder / "model", media_root=folder)


def test_texts_and_files_become_unit_vectors_and_errors_stay_in_their_row(model, folder: Path) -> None:
    rows = [
        ("a dog barks", None),
        (None, str(folder / "one.mp4")),
        (None, str(folder / "broken.mp4")),
        (None, "missing.mp4"),
        ("a dog barks", str(folder / "one.mp4")),
        (None, None),
        ("a cat", None),
        (None, "two.mp4"),
    ]
    answers = model.predict(pd.DataFrame(rows, columns=["text", "media"], index=range(10, 18)))
    assert list(answers.index) == list(range(10, 18))
    errors = answers["error"].tolist()
    assert [error is None for error in errors] == [True, True, False, False, False, False, True, True]
    assert errors[2].startswith("corrupt: ")
    assert errors[3] == "missing: no file missing.mp4"
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
    assert len(answers["embedding"][0]) == WIDTH


def test_the_answer_to_a_row_does_not_depend_on_the_others(model, folder: Path) -> None:
    many = model.predict(pd.DataFrame({"media": [str(folder / "one.mp4"), str(folder / "two.mp4")] * 9}))
    alone = model.predict(pd.DataFrame({"media": [str(folder / "two.mp4")]}))
    np.testing.assert_allclose(np.stack(many["embedding"])[1::2], np.stack([alone["embedding"][0]] * 9), atol=1e-5)


def test_texts_and_files_are_embedded_as_by_the_public_api(model, folder: Path) -> None:
    text = "a dog barks while someone says perro and the rain falls on the roof of the old house by the sea"
    rows = pd.DataFrame({"text": [text, None], "media": [None, str(folder / "one.mp4")]})
    embedder = Embedder.open(folder / "run")
    expected = [*embedder.encode_text([text]), *embedder.encode_media([folder / "one.mp4"])]
    np.testing.assert_allclose(np.stack(model.predict(rows)["embedding"]), np.stack(expected), atol=1e-5)


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
    assert width == WIDTH


def test_no_caches_are_stored(folder: Path) -> None:
    stored = [path.name for path in (folder / "model" / "code").rglob("*") if path.is_file()]
    assert "stamp-small.json" in stored
    assert not [name for name in stored if name.endswith(".pyc")]


def test_the_signature_names_the_outputs(model) -> None:
    assert model.metadata.signature.outputs.input_names() == ["embedding", "error"]


@pytest.mark.parametrize("columns", [["txt"], ["text", "modia"], []])
def test_unknown_columns_are_refused_by_name(model, columns: list[str]) -> None:
    table = pd.DataFrame({name: ["a dog barks"] for name in columns}, index=[0])
    unknown = ", ".join(repr(name) for name in columns if name != "text") or "none given"
    with pytest.raises(MlflowException, match=f"unknown columns: {unknown}; the columns are text and media") as found:
        model.predict(table)
    assert found.value.get_http_status_code() == 400


def test_what_is_no_table_is_refused(model) -> None:
    with pytest.raises(MlflowException, match="send dataframe_records with text and media") as found:
        model.predict(["a dog barks"])
    assert found.value.get_http_status_code() == 400


def test_a_request_of_too_many_rows_is_refused_and_a_long_text_gets_an_error(folder: Path) -> None:
    limited = load(folder / "model", max_rows=2, max_characters=5)
    with pytest.raises(MlflowException, match="3 rows; a request may have 2") as found:
        limited.predict(pd.DataFrame({"text": ["a", "b", "c"]}))
    assert found.value.get_http_status_code() == 400
    answers = limited.predict(pd.DataFrame({"text": ["a cow", "a cow moos"]}))
    assert answers["error"].tolist() == [None, "10 characters; a text may have 5"]
    assert answers["embedding"][1] is None


def test_without_a_media_root_no_file_is_served(folder: Path) -> None:
    answers = load(folder / "model").predict(pd.DataFrame({"media": [str(folder / "one.mp4")]}))
    assert answers["error"].tolist() == ["no files are served: CLIP4VLA_MEDIA_ROOT names no folder"]


def test_only_files_of_the_media_root_are_served(model, folder: Path, tmp_path: Path) -> None:
    outside = write_video(tmp_path / "outside.mp4", 5)
    (folder / "link.mp4").symlink_to(outside)
    (folder / "inner.mp4").symlink_to(folder / "one.mp4")
    named = [str(outside), f"../{tmp_path.name}/outside.mp4", "link.mp4", "/proc/self/environ", "inner.mp4"]
    errors = model.predict(pd.DataFrame({"media": named}))["error"].tolist()
    assert errors == [*(f"forbidden: {name} is outside of the folder of media" for name in named[:-1]), None]


def test_a_name_that_is_no_file_name_concerns_its_row_alone(model, folder: Path) -> None:
    (folder / "loop.mp4").symlink_to("loop.mp4")
    named = ["one.mp4", "half\ud800.mp4", "two\udcff.mp4", "a\0b.mp4", "loop.mp4", "x" * 5000]
    answers = model.predict(pd.DataFrame({"media": named}, dtype=object))
    errors = answers["error"].tolist()
    assert errors[0] is None
    assert errors[1:3] == [
        "no file 'half\\ud800.mp4': its name isn't valid Unicode",
        "no file 'two\\udcff.mp4': its name isn't valid Unicode",
    ]
    assert all(error.startswith("missing: no file ") for error in errors[3:])
    assert json.dumps(errors).isascii()


def test_many_requests_at_once_get_their_own_answers(model, folder: Path) -> None:
    texts = [f"{word} moos" for word in "abcdefgh"]
    requests = [{"text": [text], "media": [None]} for text in texts] + [{"media": ["one.mp4"]}] * 4
    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(lambda request: model.predict(pd.DataFrame(request)), requests))
    expected = [*Embedder.open(folder / "run").encode_text(texts)]
    expected += [*Embedder.open(folder / "run").encode_media([folder / "one.mp4"] * 4)]
    np.testing.assert_allclose([answer["embedding"][0] for answer in answers], expected, atol=1e-5)


def test_requirements_are_pinned(folder: Path) -> None:
    lines = (folder / "model" / "requirements.txt").read_text().split()
    assert f"torch=={torch.__version__.split('+')[0]}" in [line.split("+")[0] for line in lines]
    assert all("==" in line for line in lines)


def post(url: str, rows: list[dict[str, str]]) -> dict[str, Any]:
    body = json.dumps({"dataframe_records": rows}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return dict(json.loads(answer.read()))


def test_a_served_model_counts_what_it_sees_and_how_far_that_is_from_the_test_set(folder: Path) -> None:
    texts, files = [f"{word} moos" for word in "abcdefgh"], [folder / "one.mp4", folder / "two.mp4"]
    embedder = Embedder.open(folder / "run")
    reference = {"text": embedder.encode_text(texts), "media": embedder.encode_media(files)}
    write_reference({kind: EmbeddingStatistics.of(vectors) for kind, vectors in reference.items()}, folder)
    save_pyfunc(folder / "measured", folder / "run", INFERENCE, evaluation=folder)
    port = free_port()
    served = load(folder / "measured", media_root=folder, metrics_port=port)
    served.predict(pd.DataFrame({"text": texts * 4}))
    served.predict(pd.DataFrame({"text": [None, None], "media": ["missing.mp4", "one.mp4"]}))
    with pytest.raises(MlflowException):
        served.predict(pd.DataFrame({"txt": texts}))
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
        metrics = answer.read().decode().splitlines()
    assert 'clip4vla_requests_total{outcome="answered"} 2.0' in metrics
    assert 'clip4vla_requests_total{outcome="refused"} 1.0' in metrics
    assert 'clip4vla_rows_total{kind="text"} 32.0' in metrics
    assert 'clip4vla_rows_total{kind="media"} 1.0' in metrics
    assert 'clip4vla_rejects_total{reason="missing"} 1.0' in metrics
    assert 'clip4vla_drift{kind="text"} 0.0' in metrics
    assert 'clip4vla_drift{kind="media"} NaN' in metrics, "too few to tell"
    with pytest.raises(ValueError, match="CLIP4VLA_METRICS_PORT: Input should be less than"):
        load(folder / "measured", metrics_port=70_000)


@pytest.mark.slow
def test_the_champion_answers_a_rest_request_with_texts_and_videos(folder: Path, tmp_path: Path) -> None:
    """`mlflow models serve` from the registry alone, in a process of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        patch.delenv("DVC_ROOT", raising=False)
        registry = Registry(tmp_path)
        with start_run(tmp_path, "retrieval", "tiny") as run:
            pass
        assert run.run_id is not None
        table = QueryTable(("q",), ("c",), QueryRanks(np.ones(1), np.ones((1, 3))))
        scores = summarise("tiny", {"text_to_clip/both": table}, 100, 0)
        version = registry.register(run.run_id, folder / "run", scores, "clip4vla")
        assert registry.promote("clip4vla", version, Decision(True, ()), None).promote
    url = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/clip4vla@champion"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", url.rpartition(":")[2]]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["MLFLOW_TRACKING_URI"] = tracking_uri(tmp_path)
    environment["CLIP4VLA_MEDIA_ROOT"] = str(folder)
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    rows = [{"text": "a cow moos"}, {"media": str(folder / "one.mp4")}, {"media": "nowhere.mp4"}]
    with serving(supervised(command), f"{url}/ping", environment | {"PYTHONPATH": str(REPOSITORY)}, tmp_path / "log"):
        predictions = post(f"{url}/invocations", rows)["predictions"]
        with pytest.raises(urllib.error.HTTPError, match="400") as refused:
            post(f"{url}/invocations", [{"txt": "a cow moos"}])
    assert "unknown columns: 'txt'; the columns are text and media" in refused.value.read().decode()
    assert [len(row["embedding"] or ()) for row in predictions] == [WIDTH, WIDTH, 0]
    assert [row["error"] for row in predictions] == [None, None, "missing: no file nowhere.mp4"]
    np.testing.assert_allclose(np.linalg.norm(predictions[1]["embedding"]), 1, atol=1e-5)


@pytest.fixture(scope="module")
def captioner(folder: Path) -> mlflow.pyfunc.PyFuncModel:
    """A model that generates captions, as it is stored and loaded."""
    inference = CAPTIONING_INFERENCE.with_beam_search(BeamSearchConfig(beam=2))
    save_pyfunc(folder / "captioner", save_captioning(folder / "captioning"), inference)
    return load(folder / "captioner", media_root=folder)


def test_files_become_captions_and_errors_stay_in_their_row(captioner, folder: Path) -> None:
    files = ["one.mp4", "broken.mp4", "two.mp4"]
    answers = captioner.predict(pd.DataFrame({"media": [*(str(folder / name) for name in files), None]}))
    assert list(answers.columns) == ["caption", "error"]
    assert [isinstance(caption, str) for caption in answers["caption"]] == [True, False, True, False]
    assert answers["error"][1].startswith("corrupt: ")
    assert answers["error"][3] == "a row needs a media path: this model generates captions"
    assert set(" ".join(answers["caption"][[0, 2]])) <= set(" ".join(SENTENCES))
    alone = captioner.predict(pd.DataFrame({"media": [str(folder / "two.mp4")]}))
    assert alone["caption"][0] == answers["caption"][2]


def test_a_captioning_model_has_captions_in_its_signature(captioner) -> None:
    assert captioner.metadata.signature.outputs.input_names() == ["caption", "error"]
