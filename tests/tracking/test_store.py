"""The store: made and upgraded once, addresses of its pages, and credentials that never leave the environment."""

import base64
import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from clip4vla.__main__ import main
from clip4vla.tracking import store
from clip4vla.tracking.run import start_run
from clip4vla.tracking.store import (
    comparison_page,
    open_client,
    open_experiment,
    own_database,
    prepare_store,
    run_page,
    runs_table_page,
    shown_uri,
    tracking_uri,
    version_page,
)


def test_processes_that_make_the_store_together_all_succeed(made_together) -> None:
    root, ended = made_together
    assert [process.returncode for process in ended] == [0, 0, 0], "\n".join(process.stderr for process in ended)
    assert sorted(path.name for path in (root / "mlruns").iterdir()) == [".lock", ".schema", "mlflow.db"]


def test_a_store_that_is_there_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_args: object) -> None:
        raise AssertionError("the database was touched")

    monkeypatch.setattr(store, "_make_database", never)
    before = (root / "mlruns" / "mlflow.db").read_bytes()
    assert prepare_store(root) == f"sqlite:///{root}/mlruns/mlflow.db"
    assert (root / "mlruns" / "mlflow.db").read_bytes() == before


def test_a_store_of_another_mlflow_is_upgraded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgraded: list[Path] = []
    monkeypatch.setattr(store, "_upgrade", upgraded.append)
    (root / "mlruns" / ".schema").write_text("2.0.0\n")
    prepare_store(root)
    assert upgraded == [root / "mlruns" / "mlflow.db"]
    prepare_store(root)
    assert len(upgraded) == 1


def test_a_database_that_mlflow_cannot_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").write_bytes(b"this is no database" * 100)
    with pytest.raises(RuntimeError, match=r"(?s)db upgrade .*mlflow.db failed:.*not a database"):
        prepare_store(tmp_path)


def test_a_server_is_used_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example:5000")
    assert prepare_store(tmp_path) == "http://mlflow.example:5000"
    assert list(tmp_path.iterdir()) == []


def test_the_store_of_an_experiment_in_a_copy_is_the_original_one(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "original"))
    assert tracking_uri(tmp_path / "copy") == f"sqlite:///{tmp_path}/original/mlruns/mlflow.db"


def test_an_experiment_opens_on_the_table_of_training_runs(root: Path, client: MlflowClient) -> None:
    kind = {"mlflow.experimentKind": "custom_model_development"}
    created = open_experiment(client, root, "new")
    assert client.get_experiment(created).tags == kind
    untagged = client.create_experiment("untagged")
    assert open_experiment(client, root, "untagged") == untagged
    assert client.get_experiment(untagged).tags == kind
    other = client.create_experiment("other", tags={"mlflow.experimentKind": "genai_development"})
    open_experiment(client, root, "other")
    assert client.get_experiment(other).tags == {"mlflow.experimentKind": "genai_development"}


def test_a_deleted_experiment_is_not_written_to(root: Path, client: MlflowClient) -> None:
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(ValueError, match="experiment gone was deleted"):
        open_experiment(client, root, "gone")


def test_an_experiment_that_another_process_makes_first_is_used(root: Path, client: MlflowClient, monkeypatch) -> None:
    expected = client.create_experiment("raced")
    real, answers = client.get_experiment_by_name, iter([None])
    monkeypatch.setattr(client, "get_experiment_by_name", lambda name: next(answers, real(name)))
    assert open_experiment(client, root, "raced") == expected


def make_runs(root: Path, *experiments: str) -> list[str]:
    """Ids of one run in each experiment."""
    ids = []
    for name in experiments:
        with start_run(root, name, "r") as run:
            ids.append(str(run.run_id))
    return ids


def parameters(page: str) -> dict[str, str]:
    """Of the address of a page, as MLflow's pages read them."""
    return {name: values[0] for name, values in parse_qs(urlsplit(urlsplit(page).fragment).query).items()}


def test_pages_are_those_of_the_server_or_of_the_projects_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run_id,) = make_runs(root, "pretrain")
    experiment = open_client(root).get_run(run_id).info.experiment_id
    view = "?workflowType=machine_learning"
    assert run_page(root, run_id) == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{run_id}{view}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example/")
    assert version_page(root, "clip4vla", "3") == f"https://mlflow.example/#/models/clip4vla/versions/3{view}"


def test_a_comparison_names_its_runs_and_their_experiments(root: Path, client: MlflowClient) -> None:
    runs = make_runs(root, "retrieval", "ablation", "retrieval")
    page = comparison_page(root, runs)
    assert page.startswith("http://127.0.0.1:5000/#/compare-runs?runs=%5B%22")
    experiments = [client.get_experiment_by_name(name).experiment_id for name in ("retrieval", "ablation")]
    assert json.loads(parameters(page)["runs"]) == runs
    assert json.loads(parameters(page)["experiments"]) == experiments
    with pytest.raises(ValueError, match="at least one run"):
        comparison_page(root, [])


def test_a_table_of_runs_has_the_given_columns_in_their_order(root: Path, client: MlflowClient) -> None:
    make_runs(root, "retrieval")
    columns = ["metrics.R1 both", "params.epochs", "attributes.Models"]
    page = runs_table_page(root, "retrieval", columns)
    assert runs_table_page(root, "retrieval", columns) == page
    tags = client.get_experiment_by_name("retrieval").tags
    state = json.loads(tags[f"mlflow.sharedViewState.{parameters(page)['viewStateShareKey']}"])
    ids = ["metrics.`R1 both`", "params.`epochs`", "attributes.`Models`"]
    assert (state["selectedColumns"], state["columnOrder"]) == (ids, ids)
    others = runs_table_page(root, "retrieval", columns[:2])
    assert parameters(others)["viewStateShareKey"] != parameters(page)["viewStateShareKey"]


def test_a_table_of_an_unknown_experiment_or_column_is_an_error(root: Path) -> None:
    with pytest.raises(ValueError, match="there is no experiment nowhere"):
        runs_table_page(root, "nowhere", ["params.epochs"])
    make_runs(root, "retrieval")
    with pytest.raises(ValueError, match=r"'epochs' is not KIND\.NAME"):
        runs_table_page(root, "retrieval", ["epochs"])


@contextmanager
def mlflow_server(logins: list[str | None]) -> Iterator[str]:
    """A server that answers every request with a run of experiment 7; its host and port. Logins go into `logins`."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            logins.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            info = {"run_id": "r", "experiment_id": "7", "status": "FINISHED", "lifecycle_stage": "active"}
            self.wfile.write(json.dumps({"run": {"info": info, "data": {}}}).encode())

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_credentials_reach_the_server_and_no_page_or_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    logins: list[str | None] = []
    with mlflow_server(logins) as address:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ann:s%40cret@{address}")
        assert version_page(tmp_path, "m", "1").startswith(f"http://{address}/#/models/m/")  # before any client
        pages = [run_page(tmp_path, "r"), comparison_page(tmp_path, ["r", "s"])]
    assert [page.partition("#")[0] for page in pages] == [f"http://{address}/"] * 2
    assert set(logins) == {f"Basic {base64.b64encode(b'ann:s@cret').decode()}"}
    assert tracking_uri(tmp_path) == os.environ["MLFLOW_TRACKING_URI"] == f"http://{address}"
    with pytest.raises(MlflowException) as caught:
        run_page(tmp_path, "r")  # nobody answers any more
    assert address in str(caught.value)
    assert "cret" not in str(caught.value)


def test_credentials_in_mlflows_own_variables_have_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@mlflow.example:5000/base")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "bob")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "word")
    assert prepare_store(tmp_path) == "http://mlflow.example:5000/base"
    assert (os.environ["MLFLOW_TRACKING_USERNAME"], os.environ["MLFLOW_TRACKING_PASSWORD"]) == ("bob", "word")


def test_half_a_login_is_an_error_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://token@mlflow.example")
    with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI \(https://mlflow.example\) needs both a user name"):
        prepare_store(tmp_path)


def test_what_is_no_address_is_an_error_that_names_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ann:secret@[::1")
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_URI is no address: ") as caught:
        prepare_store(tmp_path)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("password", ["se/cret", "se?cret", "se#cret"])
def test_a_password_that_would_stay_in_the_address_is_an_error_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, password: str
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"https://ann:{password}@mlflow.example")
    for use in (tracking_uri, prepare_store):
        with pytest.raises(ValueError, match=r"MLFLOW_TRACKING_URI has a password with '/'") as caught:
            use(tmp_path)
        assert "cret" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "missing", "message"),
    [
        (
            "mysql://me:secret@h/db",
            "MySQLdb",
            "(mysql://h/db) needs MySQLdb, which isn't installed: `pip install my",
        ),
        ("mysql+pymysql://me:secret@h/db", "pymysql", "(mysql+pymysql://h/db) needs pymysql, which isn't installed: "),
        (
            "postgresql://me:secret@h/db",
            "psycopg2",
            "(postgresql://h/db) needs psycopg2, which isn't installed: `pip i",
        ),
        ("postgresql+nosuch://me:secret@h/db", None, "(postgresql+nosuch://h/db) can't be used: Can't load plugin"),
        ("postgresql://me:x@h:secret@h/db", None, "(postgresql://h/db) is no address of a database"),
        ("oracle://me:secret@h/db", None, "(oracle://h/db) is no store of MLflow, whose addresses begin with "),
    ],
)
def test_a_database_that_cannot_be_opened_here_is_one_sentence_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, missing: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    if missing is not None:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(SystemExit) as ended:
        main(["rollback", "clip4vla"])
    assert str(ended.value).startswith(f"clip4vla: MLFLOW_TRACKING_URI {message}")
    assert "secret" not in str(ended.value)
    for opened in (open_client, prepare_store, own_database):
        with pytest.raises(ValueError, match=r"^MLFLOW_TRACKING_URI "):
            opened(tmp_path)


def test_a_database_is_shown_without_its_password() -> None:
    assert shown_uri("postgresql://ann:se/c@ret@db.example/mlflow") == "postgresql://db.example/mlflow"
    assert shown_uri("sqlite:////home/ann@work/mlflow.db") == "sqlite:////home/ann@work/mlflow.db"
