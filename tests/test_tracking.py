"""The tracker against a real MLflow store, and its metric writer against one that is slow or away."""

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.system_metrics import system_metrics_monitor

from clip4vla import tracking
from clip4vla.tracking import (
    MlflowTracker,
    open_client,
    open_tracker,
    prepare_store,
    run_page,
    tracking_uri,
    version_page,
)

TAGS = {"audio_token": "both"}


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests write to their own folders, whatever the surroundings say."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("DVC_ROOT", raising=False)


@pytest.fixture(scope="session")
def made_together(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[subprocess.CompletedProcess[str]]]:
    """A store that three processes made at once, in a folder where an earlier attempt was killed half-way."""
    root = tmp_path_factory.mktemp("project")
    (root / "mlruns").mkdir()
    (root / "mlruns" / "mlflow.db.unfinished").write_bytes(b"half a database")
    code = f"from pathlib import Path; from clip4vla.tracking import prepare_store; prepare_store(Path({str(root)!r}))"
    started = [
        subprocess.Popen([sys.executable, "-c", code], cwd=root, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    ended = []
    for process in started:
        _, errors = process.communicate(timeout=240)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, "", errors))
    return root, ended


@pytest.fixture
def root(made_together: tuple[Path, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a store of its own."""
    shutil.copytree(made_together[0] / "mlruns", tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def client(root: Path) -> MlflowClient:
    return open_client(root)


def test_processes_that_make_the_store_together_all_succeed(made_together) -> None:
    root, ended = made_together
    assert [process.returncode for process in ended] == [0, 0, 0], "\n".join(process.stderr for process in ended)
    assert sorted(path.name for path in (root / "mlruns").iterdir()) == [".lock", ".schema", "mlflow.db"]


def test_a_store_that_is_there_is_left_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_args: object) -> None:
        raise AssertionError("the database was touched")

    monkeypatch.setattr(tracking, "_make_database", never)
    before = (root / "mlruns" / "mlflow.db").read_bytes()
    assert prepare_store(root) == f"sqlite:///{root}/mlruns/mlflow.db"
    assert (root / "mlruns" / "mlflow.db").read_bytes() == before


def test_a_store_of_another_mlflow_is_upgraded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upgraded: list[Path] = []
    monkeypatch.setattr(tracking, "_upgrade", upgraded.append)
    (root / "mlruns" / ".schema").write_text("2.0.0")
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


def test_the_history_of_a_metric_has_the_last_value_of_each_step(root: Path) -> None:
    with open_tracker(root).start("pretrain", "first", {}) as run:
        for step, value in ((1, 3.0), (2, 2.0), (2, 1.5), (3, 1.0)):
            run.metrics({"loss/text_audio": value, "lr": 0.1}, step)
            time.sleep(0.002)  # a resumed training does a step again later
    assert run.history("loss/") == {"loss/text_audio": [(1, 3.0), (2, 1.5), (3, 1.0)]}
    with open_tracker(root, rank=1).start("pretrain", "first", {}) as nothing:
        assert nothing.history("loss/") == {}


def test_pages_are_those_of_the_server_or_of_the_projects_own(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_tracker(root).start("pretrain", "first", {}) as run:
        pass
    assert run.run_id is not None
    experiment = open_client(root).get_run(run.run_id).info.experiment_id
    assert run_page(root, run.run_id) == f"http://127.0.0.1:5000/#/experiments/{experiment}/runs/{run.run_id}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example/")
    assert version_page(root, "clip4vla", "3") == "https://mlflow.example/#/models/clip4vla/versions/3"


def test_a_run_keeps_everything(root: Path, client: MlflowClient) -> None:
    (root / "notes").mkdir()
    (root / "notes" / "a.txt").write_text("hello")
    (root / "dvc.lock").write_text("stages: {}")
    with open_tracker(root).start("finetune", "first", {**TAGS, "audio_token": "both"}) as run:
        run.params({"lr": 1e-4, **{f"p{index}": index for index in range(150)}})
        for step in range(1200):
            run.metrics({"loss/total": 1.0 / (step + 1), "text_to_clip/both/R@1": 5.0}, step)
        run.artifact(root / "notes", "notes")
        run.artifact(root / "dvc.lock")
        run.figure(Figure(), "curves")
        run.dataset("stampscenes", "abc123", root / "notes", "train")
        assert client.get_run(run.run_id).info.status == "RUNNING"
    found = client.get_run(run.run_id)
    assert found.info.status == "FINISHED"
    assert found.data.params["lr"] == "0.0001"
    assert len(found.data.params) == 151
    history = client.get_metric_history(run.run_id, "loss/total")
    assert [metric.step for metric in history] == list(range(1200))
    assert found.data.metrics["text_to_clip/both/R_at_1"] == 5.0
    assert found.data.tags["audio_token"] == "both"
    assert found.data.tags["git_revision"] == "unknown"
    assert len(found.data.tags["dvc_lock"]) == 64
    assert " x " in found.data.tags["hardware"]
    kept = root / "mlruns" / "artifacts" / "finetune" / run.run_id / "artifacts"
    names = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    assert names == {"notes/a.txt", "dvc.lock", "figures/curves.png"}
    used = found.inputs.dataset_inputs[0]
    assert (used.dataset.name, used.dataset.digest, used.tags[0].value) == ("stampscenes", "abc123", "train")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("no data"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (SystemExit(3), "KILLED"),
    ],
)
def test_a_run_that_ends_badly_says_so(root: Path, client: MlflowClient, error: BaseException, status: str) -> None:
    with pytest.raises(type(error)), MlflowTracker(root).start("e", "bad", TAGS) as run:  # noqa: PT012
        run.metrics({"loss": 2.0}, 7)
        raise error
    found = client.get_run(run.run_id)
    assert found.info.status == status
    assert found.data.metrics == {"loss": 2.0}
    assert found.data.tags["error"].startswith(type(error).__name__)


def test_a_training_that_resumes_goes_on_with_its_run(root: Path, client: MlflowClient) -> None:
    tracker = MlflowTracker(root)
    with pytest.raises(RuntimeError), tracker.start("e", "long", TAGS) as first:  # noqa: PT012
        first.metrics({"loss": 2.0}, 1)
        raise RuntimeError("out of memory")
    with tracker.start("e", "long", TAGS, run_id=first.run_id) as second:
        assert client.get_run(first.run_id).info.status == "RUNNING"
        second.metrics({"loss": 1.0}, 2)
    assert second.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert [metric.value for metric in client.get_metric_history(first.run_id, "loss")] == [2.0, 1.0]
    assert len(client.search_runs([client.get_experiment_by_name("e").experiment_id])) == 1


def test_a_run_that_is_gone_cannot_be_resumed(root: Path, client: MlflowClient) -> None:
    tracker = MlflowTracker(root)
    with pytest.raises(ValueError, match=r"run 0123 can't be resumed"), tracker.start("e", "r", TAGS, run_id="0123"):
        pass
    with tracker.start("e", "r", TAGS) as run:
        pass
    client.delete_run(run.run_id)
    with pytest.raises(ValueError, match="was deleted"), tracker.start("e", "r", TAGS, run_id=run.run_id):
        pass


def test_a_deleted_experiment_is_not_written_to(root: Path, client: MlflowClient) -> None:
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(ValueError, match="experiment gone was deleted"), MlflowTracker(root).start("gone", "r", TAGS):
        pass


def test_an_experiment_that_another_process_makes_first_is_used(root: Path, client: MlflowClient, monkeypatch) -> None:
    expected = client.create_experiment("raced")
    tracker = MlflowTracker(root)
    real, answers = tracker._client.get_experiment_by_name, iter([None])
    monkeypatch.setattr(tracker._client, "get_experiment_by_name", lambda name: next(answers, real(name)))
    with tracker.start("raced", "r", TAGS) as run:
        pass
    assert client.get_run(run.run_id).info.experiment_id == expected


def test_trials_are_children_of_the_sweep(root: Path, client: MlflowClient) -> None:
    tracker = MlflowTracker(root)
    with tracker.start("ablate", "sweep", TAGS) as sweep, tracker.start("ablate", "t", TAGS, sweep.run_id) as trial:
        pass
    assert client.get_run(trial.run_id).data.tags["mlflow.parentRunId"] == sweep.run_id


def test_a_setting_cannot_change_under_a_run(root: Path) -> None:
    with MlflowTracker(root).start("e", "r", TAGS) as run:
        run.params({"lr": 1})
        run.params({"lr": 1})
        with pytest.raises(MlflowException, match="lr"):
            run.params({"lr": 2})


def test_other_ranks_record_nothing(tmp_path: Path) -> None:
    with open_tracker(tmp_path, rank=1).start("e", "r", TAGS, run_id="anything", system_metrics=True) as run:
        assert run.run_id is None
        run.params({"lr": 1})
        run.metrics({"loss": 1.0}, 1)
        run.flush()
        run.tags({"a": "b"})
        run.artifact(tmp_path / "missing")
        run.figure(Figure(), "f")
        run.dataset("d", "0", tmp_path, "train")
    assert list(tmp_path.iterdir()) == []


def test_recording_nothing_does_not_import_mlflow() -> None:
    code = "import sys; from clip4vla.tracking import NullTracker; NullTracker(); print('mlflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


class FakeClient:
    """A store that can be slow (`gate` not set) or away (`away` calls fail)."""

    def __init__(self, away: int = 0) -> None:
        self.gate = threading.Event()
        self.away = away
        self.called = threading.Event()
        self.written: list[tuple[str, float, int]] = []

    def log_batch(self, run_id: str, metrics: list, synchronous: bool) -> None:
        assert (run_id, synchronous) == ("run", True)
        assert len(metrics) <= 1000
        self.called.set()
        assert self.gate.wait(20)
        if self.away:
            self.away -= 1
            raise ConnectionError("the store is away")
        self.written += [(metric.key, metric.value, metric.step) for metric in metrics]


def test_a_slow_store_does_not_hold_up_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.01)
    client = FakeClient()
    writer = tracking._MetricWriter(client, "run")
    writer.add({"loss": 0.0}, 0)
    assert client.called.wait(20)
    for step in range(1, 2500):  # while the first batch hangs
        writer.add({"loss": float(step)}, step)
    assert client.written == []
    client.gate.set()
    writer.close()
    assert client.written == [("loss", float(step), step) for step in range(2500)]


def test_a_store_that_is_away_for_a_while_loses_nothing(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.01)
    client = FakeClient(away=3)
    client.gate.set()
    writer = tracking._MetricWriter(client, "run")
    writer.add({"loss": 1.0}, 1)
    while client.away:
        client.called.clear()
        assert client.called.wait(20)
    writer.close()
    assert client.written == [("loss", 1.0, 1)]
    assert "1 metrics wait for MLflow, which says: the store is away" in caplog.text


def test_a_store_that_stays_away_is_an_error_in_the_end() -> None:
    client = FakeClient(away=10**6)
    client.gate.set()
    writer = tracking._MetricWriter(client, "run")
    writer.add({"a": 1.0, "b": 2.0}, 1)
    with pytest.raises(RuntimeError, match="2 metrics of run run are lost: the store is away"):
        writer.close()


def test_what_is_flushed_is_on_record(root: Path, client: MlflowClient) -> None:
    with MlflowTracker(root).start("e", "r", TAGS) as run:
        run.flush()  # nothing yet
        for step in range(1200):
            run.metrics({"loss": float(step)}, step)
        run.flush()
        assert len(client.get_metric_history(run.run_id, "loss")) == 1200


def test_a_flush_does_not_wait_for_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "FLUSH_SECONDS", 0.05)
    client = FakeClient()
    writer = tracking._MetricWriter(client, "run")
    writer.add({"loss": 1.0}, 1)
    writer.flush()
    assert client.written == []
    client.gate.set()
    writer.close()
    assert client.written == [("loss", 1.0, 1)]


def monitors() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "SystemMetricsMonitor"]


def test_system_metrics_are_recorded_while_a_run_goes_on_and_when_it_resumes(
    root: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "SYSTEM_SECONDS", 0.05)
    tracker, run_id, recorded = MlflowTracker(root), None, [0]
    for _ in range(2):
        with tracker.start("e", "r", TAGS, run_id=run_id, system_metrics=True) as run:
            run_id = run.run_id
            deadline = time.monotonic() + 60
            while (
                len(history := client.get_metric_history(run_id, "system/cpu_utilization_percentage"))
                < recorded[-1] + 2
            ):
                assert time.monotonic() < deadline
                time.sleep(0.05)
        assert monitors() == []
        recorded.append(len(history))
    steps = [metric.step for metric in client.get_metric_history(run_id, "system/cpu_utilization_percentage")]
    assert steps == list(range(len(steps)))
    assert client.get_run(run_id).data.metrics["system/system_memory_usage_megabytes"] > 0


def test_only_runs_that_ask_for_system_metrics_have_them(root: Path) -> None:
    with MlflowTracker(root).start("e", "r", TAGS):
        assert monitors() == []


def test_system_metrics_that_cannot_be_had_cost_a_warning(
    root: Path, client: MlflowClient, monkeypatch, caplog
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no such sensor")

    monkeypatch.setattr(system_metrics_monitor, "SystemMetricsMonitor", fail)
    with MlflowTracker(root).start("e", "r", TAGS, system_metrics=True) as run:
        run.metrics({"loss": 1.0}, 1)
    assert "no system metrics are recorded: no such sensor" in caplog.text
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"loss": 1.0})


def test_system_metrics_end_with_a_run_that_fails(root: Path, client: MlflowClient) -> None:
    tracker = MlflowTracker(root)
    with pytest.raises(RuntimeError), tracker.start("e", "r", TAGS, system_metrics=True) as run:  # noqa: PT012
        assert len(monitors()) == 1
        raise RuntimeError("out of memory")
    assert monitors() == []
    assert client.get_run(run.run_id).info.status == "FAILED"


def test_git_revision_marks_uncommitted_changes(tmp_path: Path) -> None:
    def git(*command: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *command], check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-m", "one")
    clean = tracking.git_revision(tmp_path)
    assert len(clean) == 40
    (tmp_path / "file").write_text("two")
    assert tracking.git_revision(tmp_path) == f"{clean}-dirty"
