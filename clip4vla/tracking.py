"""Tracker: MLflow or nothing. What a run was made of and how it went, on record while it goes on.

In: names and numbers. Out: runs in MLflow's store, which is `mlruns/mlflow.db` with `mlruns/artifacts/` beside
it, or the server that MLFLOW_TRACKING_URI names. Training sees only `Tracker` and `Run`; ranks other than 0 get
the `NullTracker`, which records nothing, and never pay for importing MLflow.

The local database is made once, under a lock, before anything else opens it: processes that create it together
all fail. Metrics are written by a thread in batches, so that a slow store never slows a step.
"""

import fcntl
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

log = logging.getLogger(__name__)

UI = "http://127.0.0.1:5000"
"""Where `make ui` shows the project's own store."""
FLUSH_SECONDS = 2.0
"""Longest that a metric waits for the next batch, and that a flush waits for the store."""
SYSTEM_SECONDS = 10.0
"""Time between two samples of the system metrics."""

_FLUSH_POLL_SECONDS = 0.005
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
"""Most that MLflow takes in one call."""


class Run(ABC):
    """One run that is going on."""

    run_id: str | None
    """MLflow's id, to resume the run or to be its child; None where nothing is recorded."""

    @abstractmethod
    def params(self, values: Mapping[str, object]) -> None:
        """Record settings, flat and few; MLflow refuses another value under the same name."""

    @abstractmethod
    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record numbers of a step. Returns at once; they are written within seconds, and at the end at the latest."""

    @abstractmethod
    def flush(self) -> None:
        """Have the numbers so far written now; a store that doesn't answer within seconds gets them later."""

    @abstractmethod
    def history(self, prefix: str) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of every metric whose name begins with `prefix`, as far as they are written; the last one
        of a step that was done again."""

    @abstractmethod
    def tags(self, values: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""

    @abstractmethod
    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file, or a directory's content, under `folder` of the run's artifacts."""

    @abstractmethod
    def figure(self, figure: "Figure", name: str) -> None:
        """Keep a figure as `figures/<name>.png`."""

    @abstractmethod
    def dataset(self, name: str, digest: str, source: Path, context: str) -> None:
        """Record that the data set `name` was used; `context` says for what, such as `train` or `test`."""


class Tracker(ABC):
    """Where runs are recorded."""

    @abstractmethod
    def start(
        self,
        experiment: str,
        run_name: str,
        tags: Mapping[str, str],
        parent: str | None = None,
        run_id: str | None = None,
        system_metrics: bool = False,
    ) -> AbstractContextManager[Run]:
        """A run that lasts as long as the `with` block.

        It ends FINISHED, FAILED if the block raises, KILLED if it is interrupted or exits.

        Args:
            experiment: created when there is none of this name.
            tags: git revision, `dvc.lock` hash and hardware are added.
            parent: id of the run that this one is a trial of.
            run_id: goes on with this run, as a training does that resumes after a crash; nothing of it is lost.
            system_metrics: whether CPU, memory, disk, network and GPUs of this machine are recorded with it.

        Raises:
            ValueError: the run or experiment to go on with is gone.
        """


class NullRun(Run):
    """Records nothing."""

    run_id = None

    def params(self, values: Mapping[str, object]) -> None:
        """Nothing."""

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def history(self, prefix: str) -> dict[str, list[tuple[int, float]]]:  # noqa: ARG002
        """Nothing."""
        return {}

    def tags(self, values: Mapping[str, str]) -> None:
        """Nothing."""

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Nothing."""

    def figure(self, figure: "Figure", name: str) -> None:
        """Nothing."""

    def dataset(self, name: str, digest: str, source: Path, context: str) -> None:
        """Nothing."""


class NullTracker(Tracker):
    """Records nothing: for ranks other than 0, and for runs that nobody will look up."""

    @contextmanager
    def start(
        self,
        experiment: str,  # noqa: ARG002
        run_name: str,  # noqa: ARG002
        tags: Mapping[str, str],  # noqa: ARG002
        parent: str | None = None,  # noqa: ARG002
        run_id: str | None = None,  # noqa: ARG002
        system_metrics: bool = False,  # noqa: ARG002
    ) -> Iterator[Run]:
        """A run that leaves no trace."""
        yield NullRun()


class MlflowTracker(Tracker):
    """Records in the store of the project at `root`, which is made ready when there is none."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._client = open_client(root)

    @contextmanager
    def start(
        self,
        experiment: str,
        run_name: str,
        tags: Mapping[str, str],
        parent: str | None = None,
        run_id: str | None = None,
        system_metrics: bool = False,
    ) -> Iterator[Run]:
        """See `Tracker.start`."""
        all_tags = {**provenance(self._root), **tags}
        run = MlflowRun(self._client, self._open(experiment, run_name, all_tags, parent, run_id))
        watch = _system_metrics(run.run_id, tracking_uri(self._root)) if system_metrics else nullcontext()
        status = "FAILED"
        try:
            with watch:
                yield run
            status = "FINISHED"
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            run.tags({"error": f"{type(error).__name__}: {error}"[:500]})
            raise
        finally:
            try:
                run.close()
            finally:
                self._client.set_terminated(run.run_id, status)

    def _open(
        self, experiment: str, run_name: str, tags: dict[str, str], parent: str | None, run_id: str | None
    ) -> str:
        if run_id is not None:
            return self._resume(run_id, tags)
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        run = self._client.create_run(self._experiment_id(experiment), tags=tags, run_name=run_name)
        return str(run.info.run_id)

    def _resume(self, run_id: str, tags: Mapping[str, str]) -> str:
        from mlflow.exceptions import MlflowException

        try:
            stage = self._client.get_run(run_id).info.lifecycle_stage
        except MlflowException as error:
            raise ValueError(f"run {run_id} can't be resumed: {error}") from error
        if stage != "active":
            raise ValueError(f"run {run_id} was deleted from MLflow; restore it, or start without the old checkpoint")
        self._client.update_run(run_id, status="RUNNING")
        MlflowRun(self._client, run_id).tags(tags)
        return run_id

    def _experiment_id(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if self._client.get_experiment_by_name(name) is None:
            try:
                self._client.create_experiment(name, artifact_location=_artifact_location(self._root, name))
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was faster
                    raise
        found = self._client.get_experiment_by_name(name)
        if found is None or found.lifecycle_stage != "active":
            raise ValueError(f"experiment {name} was deleted from MLflow; restore it or take another name")
        return str(found.experiment_id)


class MlflowRun(Run):
    """One run in MLflow."""

    run_id: str

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self.run_id = run_id
        self._client = client
        self._writer = _MetricWriter(client, run_id)

    def params(self, values: Mapping[str, object]) -> None:
        """See `Run.params`."""
        from mlflow.entities import Param

        entities = [Param(name, str(value)) for name, value in values.items()]
        for start in range(0, len(entities), _PARAMS_PER_BATCH):
            self._client.log_batch(self.run_id, params=entities[start : start + _PARAMS_PER_BATCH])

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """See `Run.metrics`. MLflow allows no `@` in a name: `R@1` is recorded as `R_at_1`."""
        self._writer.add(values, step)

    def flush(self) -> None:
        """See `Run.flush`."""
        self._writer.flush()

    def history(self, prefix: str) -> dict[str, list[tuple[int, float]]]:
        """See `Run.history`."""
        names = sorted(self._client.get_run(self.run_id).data.metrics)
        found = {name: self._client.get_metric_history(self.run_id, name) for name in names if name.startswith(prefix)}
        last = {
            name: {m.step: m.value for m in sorted(points, key=lambda m: m.timestamp)} for name, points in found.items()
        }
        return {name: sorted(points.items()) for name, points in last.items()}

    def tags(self, values: Mapping[str, str]) -> None:
        """See `Run.tags`."""
        from mlflow.entities import RunTag

        self._client.log_batch(self.run_id, tags=[RunTag(name, value) for name, value in values.items()])

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """See `Run.artifact`."""
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    def figure(self, figure: "Figure", name: str) -> None:
        """See `Run.figure`."""
        self._client.log_figure(self.run_id, figure, f"figures/{name}.png")

    def dataset(self, name: str, digest: str, source: Path, context: str) -> None:
        """See `Run.dataset`."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=source.resolve().as_uri())
        used = DatasetInput(dataset, tags=[InputTag("mlflow.data.context", context)])
        self._client.log_inputs(self.run_id, [used])

    def close(self) -> None:
        """Write what is still waiting.

        Raises:
            RuntimeError: it can't be written; the message says how many numbers are lost.
        """
        self._writer.close()


@contextmanager
def _system_metrics(run_id: str, uri: str) -> Iterator[None]:
    """Record this machine's metrics under `system/` of a run while the block lasts.

    They go on where an earlier part of the run left off. Whatever keeps them from being recorded is a warning:
    nobody trains for their sake.
    """
    monitor = _start_monitor(run_id, uri)
    try:
        yield
    finally:
        if monitor is not None:
            monitor.finish()


def _start_monitor(run_id: str, uri: str) -> "SystemMetricsMonitor | None":
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it tells of its every start and stop
    try:
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        monitor = SystemMetricsMonitor(run_id, SYSTEM_SECONDS, resume_logging=True, tracking_uri=uri)
        monitor.start()
    except Exception as error:
        log.warning("no system metrics are recorded: %s", error)
        return None
    return monitor


class _MetricWriter:
    """Collects metrics and writes them from a thread of its own, which starts with the first one.

    A batch that can't be written is kept and tried again with the next: a store that is away for a while costs
    a warning, not the training. Only what can't be written at the end is an error.
    """

    def __init__(self, client: "MlflowClient", run_id: str) -> None:
        self._client = client
        self._run_id = run_id
        self._waiting: list[tuple[str, float, int, int]] = []
        self._lock = threading.Lock()
        self._hurry, self._stop = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def add(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        rows = [(name.replace("@", "_at_"), float(value), now, step) for name, value in values.items()]
        with self._lock:
            self._waiting.extend(rows)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="metrics", daemon=True)
            self._thread.start()

    def flush(self) -> None:
        self._hurry.set()
        deadline = time.monotonic() + FLUSH_SECONDS
        while self._waiting and time.monotonic() < deadline:
            time.sleep(_FLUSH_POLL_SECONDS)

    def close(self) -> None:
        self._stop.set()
        self._hurry.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self._flush()
        except Exception as error:
            raise RuntimeError(f"{len(self._waiting)} metrics of run {self._run_id} are lost: {error}") from error

    def _work(self) -> None:
        while not self._stop.is_set():
            self._hurry.wait(FLUSH_SECONDS)
            self._hurry.clear()
            try:
                self._flush()
            except Exception as error:
                log.warning("%d metrics wait for MLflow, which says: %s", len(self._waiting), error)

    def _flush(self) -> None:
        from mlflow.entities import Metric

        while batch := self._waiting[:_METRICS_PER_BATCH]:
            self._client.log_batch(self._run_id, metrics=[Metric(*row) for row in batch], synchronous=True)
            with self._lock:
                del self._waiting[: len(batch)]


def open_tracker(root: Path, rank: int = 0) -> Tracker:
    """The tracker of a training rank: MLflow for rank 0, nothing for the others."""
    return MlflowTracker(root) if rank == 0 else NullTracker()


def open_client(root: Path) -> "MlflowClient":
    """A client of the project's store, which is made ready when there is none."""
    uri = prepare_store(root)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def store_directory(root: Path) -> Path:
    """`mlruns/` of the project at `root`.

    Under `dvc exp run --temp` or `--queue` the working directory is a copy that is thrown away; DVC_ROOT then
    names the repository it was copied from, and the store is there.
    """
    return Path(os.environ.get("DVC_ROOT", root)).resolve() / "mlruns"


def tracking_uri(root: Path) -> str:
    """Where runs are recorded: MLFLOW_TRACKING_URI, or the project's own database."""
    return os.environ.get("MLFLOW_TRACKING_URI") or _own_uri(root)


def _own_uri(root: Path) -> str:
    return f"sqlite:///{store_directory(root) / 'mlflow.db'}"


def prepare_store(root: Path) -> str:
    """Make the project's own database, or bring it up to the installed MLflow; return the tracking URI.

    Safe to call from many processes at once, and cheap when there is nothing to do. A server that
    MLFLOW_TRACKING_URI names looks after itself.

    Raises:
        RuntimeError: MLflow can't make or upgrade the database.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    if not sys.stderr.isatty():
        os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    uri = tracking_uri(root)
    if uri != _own_uri(root):
        return uri
    directory, installed = store_directory(root), version("mlflow")
    database, marker = directory / "mlflow.db", directory / ".schema"
    with store_lock(root):
        if not (database.is_file() and marker.is_file() and marker.read_text() == installed):
            _make_database(database)
            _make_default_experiment(uri)
            marker.write_text(installed)
    return uri


def _make_default_experiment(uri: str) -> None:
    """MLflow makes one when a store is first opened, and processes that do so together fail over it."""
    from mlflow import MlflowClient

    MlflowClient(tracking_uri=uri).search_experiments(max_results=1)


def run_page(root: Path, run_id: str) -> str:
    """Address of a run in MLflow's pages: the server's, or those that `make ui` shows."""
    return f"{_pages(root)}/experiments/{open_client(root).get_run(run_id).info.experiment_id}/runs/{run_id}"


def version_page(root: Path, name: str, version: str) -> str:
    """Address of a model's version in MLflow's pages."""
    return f"{_pages(root)}/models/{name}/versions/{version}"


def _pages(root: Path) -> str:
    uri = tracking_uri(root)
    return f"{(uri if uri.startswith('http') else UI).rstrip('/')}/#"


def is_local(uri: str) -> bool:
    """Whether this process opens the database `uri` itself, rather than asking a server."""
    return uri.startswith("sqlite:")


@contextmanager
def store_lock(root: Path) -> Iterator[None]:
    """Only one process at a time passes here; the lock of one that dies is free at once."""
    directory = store_directory(root)
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make_database(database: Path) -> None:
    """Upgrade `database`, or make it aside and move it into place, so that a killed attempt leaves nothing half."""
    if database.is_file():
        _upgrade(database)
        return
    unfinished = database.with_name("mlflow.db.unfinished")
    unfinished.unlink(missing_ok=True)
    _upgrade(unfinished)
    unfinished.replace(database)


def _upgrade(database: Path) -> None:
    command = [sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{database}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def _artifact_location(root: Path, experiment: str) -> str | None:
    if not is_local(tracking_uri(root)):
        return None  # the server knows where it keeps artifacts
    return (store_directory(root) / "artifacts" / experiment).as_uri()


def provenance(root: Path) -> dict[str, str]:
    """Tags that say what a run was made from and on: git revision, hash of `dvc.lock`, hardware."""
    return {"git_revision": git_revision(root), "dvc_lock": dvc_lock_hash(root), "hardware": hardware()}


def git_revision(root: Path) -> str:
    """Commit of the code at `root`, with `-dirty` where tracked files differ from it; `unknown` outside git."""
    revision = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    if revision is None:
        return "unknown"
    changed = _output(["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no"])
    return f"{revision}-dirty" if changed else revision


def dvc_lock_hash(root: Path) -> str:
    """SHA-256 of `dvc.lock`, which pins data and stages; `none` before the first `dvc repro`."""
    lock = root / "dvc.lock"
    return hashlib.sha256(lock.read_bytes()).hexdigest() if lock.is_file() else "none"


def hardware() -> str:
    """Processor, cores and GPUs of this machine, such as `2 x AMD EPYC 7B13, 1 x NVIDIA H100`."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor() or platform.machine()
    gpus = (_output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]) or "").splitlines()
    counted = [f"{gpus.count(name)} x {name}" for name in sorted(set(gpus))]
    return ", ".join([f"{os.cpu_count()} x {processor}", *counted])


def _output(command: Sequence[str]) -> str | None:
    """What `command` prints, or None where it isn't installed or fails."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None
