"""MLflow runs: what a training was made of and how it went, recorded while it goes on.

In: names and numbers. Out: a run in the project's store (see `store`). Training depends on `Run` alone. Ranks other
than 0 get a `Run` that records nothing and never import MLflow, which takes seconds.

Metrics are written by a thread in batches, so that a slow store never slows a step.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from clip4vla.tracking.provenance import provenance, source_tags
from clip4vla.tracking.store import open_client, open_experiment, tracking_uri

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric
    from mlflow.entities import Run as RecordedRun
    from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0
"""Longest that a metric waits for the next batch, and that a flush waits for the store."""
SYSTEM_SECONDS = 10.0
"""Time between two samples of the system metrics."""

HEADLINES = {
    "text_to_clip/both/R@1": "R1 both",
    "by_query/seen/both/R@1": "R1 seen",
    "by_query/heard/both/R@1": "R1 heard",
    "by_query/said/both/R@1": "R1 said",
    "text_to_clip/video/R@1": "R1 video",
    "text_to_clip/audio/R@1": "R1 audio",
    "clip_to_text/both/R@1": "R1 clip_to_text",
    "caption/both/CIDEr": "CIDEr",
}
"""The scores to compare runs by, and their names in MLflow. Its tables order metrics by character code, in which
capitals come first: no other metric begins with one."""

FIGURES = "figures"
"""Folder of a run's artifacts."""

_FLUSH_POLL_SECONDS = 0.005
_METRICS_PER_BATCH = 1000
_PARAMS_PER_BATCH = 100
"""Most that MLflow takes in one call."""


class Run:
    """One run in MLflow, or, without a client, one that records nothing."""

    def __init__(
        self, client: "MlflowClient | None" = None, run_id: str = "", recorded_provenance: Mapping[str, str] = {}
    ) -> None:
        self.run_id = run_id or None
        """MLflow's id, to resume the run or to be its child; None where nothing is recorded."""
        self.provenance = dict(recorded_provenance)
        """`git_revision`, `dvc_lock` and `hardware` of when the run was created."""
        self._client = client
        self._id = run_id
        self._writer = None if client is None else _MetricWriter(client, run_id)

    def log_params(self, values: Mapping[str, object]) -> None:
        """Record settings, flat and few; MLflow refuses another value under the same name."""
        if self._client is None:
            return
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in values.items()]
        for start in range(0, len(params), _PARAMS_PER_BATCH):
            self._client.log_batch(self._id, params=params[start : start + _PARAMS_PER_BATCH])

    def log_metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        """Record numbers of a step. Returns at once; they are written within seconds, and at the end at the latest.

        MLflow allows no `@` in a name: `R@1` is recorded as `R_at_1`.
        """
        if self._writer is not None:
            self._writer.add(values, step)

    def flush(self) -> None:
        """Write the numbers so far now; a store that doesn't answer within seconds gets them later."""
        if self._writer is not None:
            self._writer.flush()

    def history(self, prefix: str) -> dict[str, list[tuple[int, float]]]:
        """(step, value) of every metric whose name begins with `prefix`, as far as they are written.

        Of a step that was done again, the last value.
        """
        if self._client is None:
            return {}
        names = [name for name in sorted(self._client.get_run(self._id).data.metrics) if name.startswith(prefix)]
        points = {name: self._client.get_metric_history(self._id, name) for name in names}
        last = {name: {m.step: m.value for m in sorted(found, key=_time)} for name, found in points.items()}
        return {name: sorted(values.items()) for name, values in last.items()}

    def set_tags(self, values: Mapping[str, str]) -> None:
        """Set tags; a later value replaces an earlier one."""
        if self._client is None:
            return
        from mlflow.entities import RunTag

        self._client.log_batch(self._id, tags=[RunTag(name, value) for name, value in values.items()])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file among the run's artifacts, in a folder of them where one is named."""
        if self._client is not None:
            self._client.log_artifact(self._id, str(path), folder)

    def log_figure(self, figure: "Figure", name: str) -> None:
        """Keep a figure as `figures/<name>.png`."""
        if self._client is not None:
            self._client.log_figure(self._id, figure, f"{FIGURES}/{name}.png")

    def log_dataset(self, name: str, digest: str, source: Path, context: str) -> None:
        """Record that the data set `name` was used; `context` is for what, such as `train` or `test`."""
        if self._client is None:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(name=name, digest=digest[:36], source_type="local", source=source.resolve().as_uri())
        used = DatasetInput(dataset, tags=[InputTag("mlflow.data.context", context)])
        self._client.log_inputs(self._id, [used])

    def close(self) -> None:
        """Write the metrics that are still waiting.

        Raises:
            RuntimeError: they can't be written; the message says how many are lost.
        """
        if self._writer is not None:
            self._writer.close()


@contextmanager
def start_run(
    root: Path,
    experiment: str,
    run_name: str,
    tags: Mapping[str, str] = {},
    parent: str | None = None,
    run_id: str | None = None,
    system_metrics: bool = False,
    enabled: bool = True,
) -> Iterator[Run]:
    """A training's run, which lasts as long as the `with` block.

    It ends FINISHED, FAILED if the block raises, KILLED if it is interrupted or exits. Its provenance is that of the
    process that created it; a resumed run gets what differs by then under `resumed.*`.

    Args:
        root: the project's directory.
        experiment: created when there is none of this name; without effect on a resumed run.
        run_name: shown in MLflow's tables; without effect on a resumed run.
        tags: added to the provenance.
        parent: id of the run that this one is a trial of; without effect on a resumed run.
        run_id: the run to resume, as a training does after a crash; nothing recorded is lost.
        system_metrics: whether CPU, memory, disk, network and GPUs of this machine are recorded with it.
        enabled: False, for ranks other than 0, gives a run that records nothing.

    Raises:
        ValueError: the run to resume, or the experiment, is gone.
    """
    if not enabled:
        yield Run()
        return
    client = open_client(root)
    if run_id is None:
        run = _create_run(client, root, experiment, run_name, tags, parent)
    else:
        run = _resume_run(client, root, run_id, tags)
    monitor = _system_metrics(str(run.run_id), tracking_uri(root)) if system_metrics else nullcontext()
    with _terminated(client, run), monitor:
        yield run


def can_resume(root: Path, run_id: str) -> bool:
    """Whether MLflow has the run `run_id`, which was not deleted there."""
    from mlflow.exceptions import MlflowException

    try:
        found = open_client(root).get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return False
    return bool(found.info.lifecycle_stage == "active")


@contextmanager
def reopen_run(root: Path, run_id: str) -> Iterator[Run]:
    """An existing training's run, to add an evaluation's results to. Its status, times and provenance stay as they are.

    This process's own provenance becomes `evaluation.git_revision` and so on.

    Args:
        root: the project's directory.
        run_id: the run.

    Raises:
        ValueError: the run is gone.
    """
    client = open_client(root)
    run = _recorded(client, run_id)
    run.set_tags({f"evaluation.{name}": value for name, value in provenance(root).items()})
    try:
        yield run
    finally:
        run.close()


def headline(values: Mapping[str, float]) -> dict[str, float]:
    """The few of a model's scores to compare runs by, under names that come first in MLflow's tables.

    They are rounded to four digits, because the tables cut longer ones off.
    """
    return {name: float(f"{values[score]:.4g}") for score, name in HEADLINES.items() if score in values}


def _create_run(
    client: "MlflowClient", root: Path, experiment: str, run_name: str, tags: Mapping[str, str], parent: str | None
) -> Run:
    origin = provenance(root)
    all_tags = {**source_tags(root, origin["git_revision"]), **origin, **tags}
    if parent is not None:
        all_tags["mlflow.parentRunId"] = parent
    created = client.create_run(open_experiment(client, root, experiment), tags=all_tags, run_name=run_name)
    return Run(client, created.info.run_id, origin)


def _resume_run(client: "MlflowClient", root: Path, run_id: str, tags: Mapping[str, str]) -> Run:
    run = _recorded(client, run_id)
    client.update_run(run_id, status="RUNNING")
    changed = {name: value for name, value in provenance(root).items() if run.provenance.get(name) != value}
    run.set_tags({**{f"resumed.{name}": value for name, value in changed.items()}, **tags})
    return run


def _recorded(client: "MlflowClient", run_id: str) -> Run:
    """The run `run_id` with the provenance that it was created with."""
    tags = _active_run(client, run_id).data.tags
    names = ("git_revision", "dvc_lock", "hardware")
    return Run(client, run_id, {name: tags[name] for name in names if name in tags})


def _active_run(client: "MlflowClient", run_id: str) -> "RecordedRun":
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_run(run_id)
    except MlflowException as error:
        raise ValueError(f"run {run_id} can't be opened: {error}") from error
    if found.info.lifecycle_stage != "active":
        raise ValueError(f"run {run_id} was deleted from MLflow; restore it, or start without the old checkpoint")
    return found


@contextmanager
def _terminated(client: "MlflowClient", run: Run) -> Iterator[None]:
    """Write the run's last metrics and its status when the block ends; a store that is away then costs a warning."""
    status = "FINISHED"
    try:
        yield
    except BaseException as error:
        status = "FAILED" if isinstance(error, Exception) else "KILLED"
        with _warned(run, "its error is not recorded"):
            run.set_tags({"error": f"{type(error).__name__}: {error}"[:500]})
        raise
    finally:
        with _warned(run, "its last metrics are not recorded"):
            run.close()
        with _warned(run, f"its status {status} is not recorded"):
            client.set_terminated(str(run.run_id), status)


@contextmanager
def _warned(run: Run, what: str) -> Iterator[None]:
    """Turn an error of the store into a warning: at the end of a run it must not hide how the run ended."""
    try:
        yield
    except Exception as error:
        log.warning("run %s: %s: %s", run.run_id, what, str(error).partition("\n")[0])


@contextmanager
def _system_metrics(run_id: str, uri: str) -> Iterator[None]:
    """Record this machine's metrics under `system/` of a run while the block lasts.

    A resumed run's continue at its last step. A failure to record them is a warning and doesn't end the training.
    """
    monitor = _start_monitor(run_id, uri)
    try:
        yield
    finally:
        if monitor is not None:
            monitor.finish()


def _start_monitor(run_id: str, uri: str) -> "SystemMetricsMonitor | None":
    logging.getLogger("mlflow.system_metrics").setLevel(logging.WARNING)  # it logs every start and stop
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
            self._write()
        except Exception as error:
            raise RuntimeError(f"{len(self._waiting)} metrics of run {self._run_id} are lost: {error}") from error

    def _work(self) -> None:
        while not self._stop.is_set():
            self._hurry.wait(FLUSH_SECONDS)
            self._hurry.clear()
            try:
                self._write()
            except Exception as error:
                log.warning("%d metrics are not written yet: %s", len(self._waiting), error)

    def _write(self) -> None:
        from mlflow.entities import Metric

        while batch := self._waiting[:_METRICS_PER_BATCH]:
            self._client.log_batch(self._run_id, metrics=[Metric(*row) for row in batch], synchronous=True)
            with self._lock:
                del self._waiting[: len(batch)]


def _time(metric: "Metric") -> int:
    return int(metric.timestamp)
