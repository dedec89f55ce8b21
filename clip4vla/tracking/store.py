"""MLflow's store: where it is, how it is made and upgraded, its client, and the addresses of its pages.

In: the project's directory and the environment. Out: a client of `mlruns/mlflow.db` with `mlruns/artifacts/` beside
it, or of the server in MLFLOW_TRACKING_URI.

The local database is made once, under a lock, before anything else opens it: processes that create it together all
fail. MLflow keeps the absolute addresses of artifacts in it, which are put right when the folder has moved.

A user name and password in MLFLOW_TRACKING_URI move to the variables that MLflow has for them before its client
starts: it puts the URI into its errors, which end up in logs and tags.
"""

import fcntl
import json
import logging
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlencode, urlsplit, urlunsplit

from clip4vla.utils.hashing import hash_text

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

UI = "http://127.0.0.1:5000"
"""Where `make ui` shows the project's own store."""
URI_VARIABLE = "MLFLOW_TRACKING_URI"
USER_VARIABLE, PASSWORD_VARIABLE = "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"

ARTIFACTS = "artifacts"
"""The folder of the project's own artifacts, beside the database."""
LOCATIONS = (
    *(("experiments", "artifact_location"), ("runs", "artifact_uri"), ("logged_models", "artifact_location")),
    *(("model_versions", "source"), ("model_versions", "storage_location")),
)
"""Tables and columns of MLflow's database that hold addresses of artifacts."""

KIND_TAG, KIND = "mlflow.experimentKind", "custom_model_development"
"""Marks an experiment as one of model training, not of language-model applications."""
TRAINING_VIEW = {"workflowType": "machine_learning"}
"""Opens MLflow's pages on training runs and registered models. Where an address lacks it, MLflow 3.17 goes by what the
visitor last selected in the sidebar, at first `GenAI`, and never by the tag."""
COLUMN_KINDS = ("attributes", "metrics", "params", "tags")
HTTP = ("http", "https")
DATABASES = ("mssql", "mysql", "postgresql", "sqlite")
DRIVER_PACKAGES = {
    "MySQLdb": "mysqlclient",
    "psycopg": "'psycopg[binary]'",
    "psycopg2": "'.[team]' -c constraints.txt",
}
"""What pip installs for a driver of a database, by its module; others are named as theirs."""


def store_directory(root: Path) -> Path:
    """`mlruns/` of the project at `root`.

    Under `dvc exp run --temp` or `--queue` the working directory is a copy that is thrown away; DVC_ROOT is then the
    repository it was copied from, and the store is there.
    """
    return Path(os.environ.get("DVC_ROOT", root)).resolve() / "mlruns"


def tracking_uri(root: Path) -> str:
    """Where runs are recorded: MLFLOW_TRACKING_URI without user name and password, or the project's own database."""
    return _without_credentials(os.environ.get(URI_VARIABLE, "")) or _own_uri(root)


def is_local(uri: str) -> bool:
    """Whether this process opens the database `uri` itself, rather than asking a server."""
    return uri.startswith("sqlite:")


def shown_uri(uri: str) -> str:
    """The address of a store for messages: that of a database of a server, too, without user name and password."""
    return uri if is_local(uri) else re.sub("(?<=://).*@", "", uri)


def open_client(root: Path) -> "MlflowClient":
    """A client of the project's store, which is made when there is none; the registry is there, too."""
    uri = prepare_store(root)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)  # else MLFLOW_REGISTRY_URI would name another


def prepare_store(root: Path) -> str:
    """Make the project's own database, or bring it up to date with the installed MLflow and the place of its folder.

    Safe to call from many processes at once, and cheap when there is nothing to do. A server in MLFLOW_TRACKING_URI
    is used as it is.

    Returns:
        The tracking URI.

    Raises:
        RuntimeError: MLflow can't make or upgrade the database.
        ValueError: MLFLOW_TRACKING_URI has a user name without a password, or the reverse; or it names a database whose
            driver isn't installed, or no store of MLflow.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if not sys.stderr.isatty():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    _move_credentials()
    uri = tracking_uri(root)
    if uri != _own_uri(root):
        _check_database(uri)
        return uri
    directory, installed = store_directory(root), version("mlflow")
    database, marker = _database(root), directory / ".schema"
    with store_lock(root):
        state = f"{installed}\n{directory.as_uri()}"
        kept = marker.read_text() if marker.is_file() and database.is_file() else ""
        if kept.partition("\n")[0] != installed:
            _make_database(database)
        if kept != state:
            _follow_moved_folder(database)
            marker.write_text(state)
    return uri


def own_database(root: Path) -> Path | None:
    """The project's own database, made and brought up to date; None where MLFLOW_TRACKING_URI names another store.

    Raises:
        RuntimeError, ValueError: see `prepare_store`.
    """
    return _database(root) if prepare_store(root) == _own_uri(root) else None


@contextmanager
def store_lock(root: Path) -> Iterator[None]:
    """Only one process at a time holds the project's own store; the lock of one that dies is free at once."""
    directory = store_directory(root)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def open_experiment(client: "MlflowClient", root: Path, name: str) -> str:
    """Id of the experiment `name`, which is created when there is none.

    Raises:
        ValueError: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    if client.get_experiment_by_name(name) is None:
        try:
            client.create_experiment(name, artifact_location=_artifact_location(root, name), tags={KIND_TAG: KIND})
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                raise
    experiment = _active_experiment(client, name)
    if KIND_TAG not in experiment.tags:
        client.set_experiment_tag(experiment.experiment_id, KIND_TAG, KIND)
    return str(experiment.experiment_id)


def run_page(root: Path, run_id: str) -> str:
    """Address of a run in MLflow's pages: the server's, or those of `make ui`."""
    return _page(root, f"experiments/{_experiment_of(open_client(root), run_id)}/runs/{run_id}")


def version_page(root: Path, name: str, version: str) -> str:
    """Address of a model's version in MLflow's pages."""
    return _page(root, f"models/{quote(name, safe='')}/versions/{version}")


def comparison_page(root: Path, run_ids: Sequence[str]) -> str:
    """Address of MLflow's page that shows runs side by side, in the order of `run_ids`.

    Raises:
        ValueError: there is no run to compare.
    """
    if not run_ids:
        raise ValueError("a comparison needs at least one run id")
    client = open_client(root)
    experiments = list(dict.fromkeys(_experiment_of(client, run_id) for run_id in run_ids))
    return _page(root, "compare-runs", runs=_json_list(run_ids), experiments=_json_list(experiments))


def runs_table_page(root: Path, experiment: str, columns: Sequence[str]) -> str:
    """Address of an experiment's table of runs with the given columns.

    The columns are kept as a shared view: a tag of the experiment, which the address refers to. MLflow's pages take
    no columns in the address itself.

    Args:
        root: the project's directory.
        experiment: its name.
        columns: each `KIND.NAME` with a kind of `COLUMN_KINDS`: `metrics.R1 both`, `params.objective`,
            `tags.git_revision`, `attributes.Source`.

    Raises:
        ValueError: there is no such experiment, or a column is of no such kind.
    """
    client = open_client(root)
    found = _active_experiment(client, experiment)
    ids = [_column_id(column) for column in columns]
    state = json.dumps({"selectedColumns": ids, "columnOrder": ids}, sort_keys=True)
    key = hash_text(state, digits=16)
    if f"mlflow.sharedViewState.{key}" not in found.tags:
        client.set_experiment_tag(found.experiment_id, f"mlflow.sharedViewState.{key}", state)
    return _page(root, f"experiments/{found.experiment_id}/runs", viewStateShareKey=key)


def _column_id(column: str) -> str:
    kind, _, name = column.partition(".")
    if kind not in COLUMN_KINDS or not name:
        raise ValueError(f"the column {column!r} is not KIND.NAME with a kind of {', '.join(COLUMN_KINDS)}")
    return f"{kind}.`{name}`"


def _json_list(values: Sequence[str]) -> str:
    return json.dumps(list(values), separators=(",", ":"))


def _page(root: Path, path: str, **parameters: str) -> str:
    """Address of a page: the server's, or that of `make ui`."""
    uri = tracking_uri(root)
    base = (uri if uri.startswith("http") else UI).rstrip("/")
    return f"{base}/#/{path}?{urlencode({**parameters, **TRAINING_VIEW}, quote_via=quote)}"


def _experiment_of(client: "MlflowClient", run_id: str) -> str:
    return str(client.get_run(run_id).info.experiment_id)


def _active_experiment(client: "MlflowClient", name: str) -> "Experiment":
    found = client.get_experiment_by_name(name)
    if found is None:
        raise ValueError(f"there is no experiment {name} in MLflow")
    if found.lifecycle_stage != "active":
        raise ValueError(f"experiment {name} was deleted from MLflow; restore it or take another name")
    return found


def _own_uri(root: Path) -> str:
    return f"sqlite:///{_database(root)}"


def _database(root: Path) -> Path:
    return store_directory(root) / "mlflow.db"


def _without_credentials(uri: str) -> str:
    """The address of a server without user name and password; other addresses as they are.

    Raises:
        ValueError: it is none, or a part of the password would stay in it.
    """
    try:
        parts = urlsplit(uri)
    except ValueError as error:  # which doesn't repeat the address
        raise ValueError(f"{URI_VARIABLE} is no address: {error}") from None
    if parts.scheme not in HTTP:
        return uri
    bare = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    if "@" in bare:
        raise ValueError(f"{URI_VARIABLE} has a password with '/', '?' or '#': write %2F, %3F or %23 for it")
    return bare


def _move_credentials() -> None:
    """Take user name and password out of MLFLOW_TRACKING_URI; those in MLflow's own variables have precedence."""
    uri = os.environ.get(URI_VARIABLE, "")
    bare = _without_credentials(uri)
    if bare == uri:
        return
    parts = urlsplit(uri)
    if not (parts.username and parts.password):
        raise ValueError(f"{URI_VARIABLE} ({bare}) needs both a user name and a password before its @, or neither")
    os.environ[URI_VARIABLE] = bare
    if not (os.environ.get(USER_VARIABLE) and os.environ.get(PASSWORD_VARIABLE)):
        os.environ[USER_VARIABLE], os.environ[PASSWORD_VARIABLE] = unquote(parts.username), unquote(parts.password)


def _check_database(uri: str) -> None:
    """Refuse what MLflow fails over with a traceback, or with a message that has the password.

    Raises:
        ValueError: `uri` names a database whose driver isn't installed, or has a password for what is no store.
    """
    scheme, is_address, rest = uri.partition("://")
    if not is_address or scheme in HTTP:
        return
    if scheme.partition("+")[0] in DATABASES:
        _check_driver(uri)
    elif "@" in rest:
        known = ", ".join((*HTTP, *DATABASES))
        raise ValueError(f"{URI_VARIABLE} ({shown_uri(uri)}) is no store of MLflow, whose addresses begin with {known}")


def _check_driver(uri: str) -> None:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError

    where = f"{URI_VARIABLE} ({shown_uri(uri)})"
    try:
        make_url(uri).get_dialect().import_dbapi()
    except ModuleNotFoundError as error:
        module = str(error.name)
        package = DRIVER_PACKAGES.get(module, module)
        raise ValueError(f"{where} needs {module}, which isn't installed: `pip install {package}`") from None
    except (NoSuchModuleError, ImportError) as error:
        raise ValueError(f"{where} can't be used: {' '.join(str(error).split())}") from None
    except (ArgumentError, ValueError):  # whose text may have a part of the password
        raise ValueError(f"{where} is no address of a database") from None


def _make_database(database: Path) -> None:
    """Upgrade `database`, or make it aside and move it into place, so that a killed attempt leaves nothing half."""
    if database.is_file():
        _upgrade(database)
        _open_first(database)
        return
    unfinished = database.with_name("mlflow.db.unfinished")
    unfinished.unlink(missing_ok=True)
    _open_first(unfinished)
    unfinished.replace(database)


def _open_first(database: Path) -> None:
    """Have MLflow make what a store must have, a default experiment too; processes that do so together fail."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    logging.getLogger("mlflow.store.db").setLevel(logging.WARNING)  # it reports every step
    try:
        MlflowClient(tracking_uri=f"sqlite:///{database}").search_experiments(max_results=1)
    except MlflowException as error:
        raise RuntimeError(f"MLflow can't make {database}: {error}") from error


def _upgrade(database: Path) -> None:
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{database}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def _follow_moved_folder(database: Path) -> None:
    """Have the artifacts of a store that was moved, copied or restored looked for beside its database.

    Raises:
        RuntimeError: the database can't be read.
    """
    beside = f"{(database.parent / ARTIFACTS).as_uri()}/"
    try:
        with closing(sqlite3.connect(database)) as connection, connection:
            for table, column in LOCATIONS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, instr({column}, ?) + length(?)) "
                    f"WHERE {column} LIKE 'file:%' || ? || '%' AND substr({column}, 1, length(?)) != ?",
                    (beside, *[f"/mlruns/{ARTIFACTS}/"] * 3, beside, beside),
                )
    except sqlite3.Error as error:
        raise RuntimeError(f"{database} can't be brought up to date: {error}") from error


def _artifact_location(root: Path, experiment: str) -> str | None:
    if not is_local(tracking_uri(root)):
        return None  # the server decides where it keeps artifacts
    return (store_directory(root) / ARTIFACTS / experiment).as_uri()
