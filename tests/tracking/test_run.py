"""Runs in a real MLflow store, and the metric writer against a store that is slow or away."""

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

from clip4vla.tracking import run as run_module
from clip4vla.tracking.run import HEADLINES, Run, can_resume, headline, reopen_run, start_run

TAGS = {"audio_token": "both"}


def test_the_history_of_a_metric_has_the_last_value_of_each_step(root: Path) -> None:
    with start_run(root, "pretrain", "first") as run:
        for step, value in ((1, 3.0), (2, 2.0), (2, 1.5), (3, 1.0)):
            run.log_metrics({"loss/text_audio": value, "lr": 0.1}, step)
            time.sleep(0.002)  # a resumed training does a step again later
    assert run.history("loss/") == {"loss/text_audio": [(1, 3.0), (2, 1.5), (3, 1.0)]}
    with start_run(root, "pretrain", "first", enabled=False) as nothing:
        assert nothing.history("loss/") == {}


def test_a_run_keeps_everything(root: Path, client: MlflowClient) -> None:
    (root / "notes").mkdir()
    (root / "notes" / "a.txt").write_text("hello")
    (root / "dvc.lock").write_text("stages: {}")
    with start_run(root, "finetune", "first", TAGS) as run:
        run.log_params({"lr": 1e-4, **{f"p{index}": index for index in range(150)}})
        for step in range(1200):
            run.log_metrics({"loss/total": 1.0 / (step + 1), "text_to_clip/both/R@1": 5.0}, step)
        run.log_artifact(root / "notes" / "a.txt")
        run.log_artifact(root / "dvc.lock", "made/by")
        run.log_figure(Figure(), "curves")
        run.log_dataset("stampscenes", "abc123", root / "notes", "train")
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
    assert names == {"a.txt", "made/by/dvc.lock", "figures/curves.png"}
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
def test_a_run_that_ends_badly_has_its_error(
    root: Path, client: MlflowClient, error: BaseException, status: str
) -> None:
    with pytest.raises(type(error)), start_run(root, "e", "bad", TAGS) as run:  # noqa: PT012
        run.log_metrics({"loss": 2.0}, 7)
        raise error
    found = client.get_run(run.run_id)
    assert found.info.status == status
    assert found.data.metrics == {"loss": 2.0}
    assert found.data.tags["error"].startswith(type(error).__name__)


def test_a_training_that_resumes_goes_on_with_its_run(root: Path, client: MlflowClient) -> None:
    with pytest.raises(RuntimeError), start_run(root, "e", "long", TAGS) as first:  # noqa: PT012
        first.log_metrics({"loss": 2.0}, 1)
        raise RuntimeError("out of memory")
    with start_run(root, "e", "long", TAGS, run_id=first.run_id) as second:
        assert client.get_run(first.run_id).info.status == "RUNNING"
        second.log_metrics({"loss": 1.0}, 2)
    assert second.run_id == first.run_id
    assert client.get_run(first.run_id).info.status == "FINISHED"
    assert [metric.value for metric in client.get_metric_history(first.run_id, "loss")] == [2.0, 1.0]
    assert len(client.search_runs([client.get_experiment_by_name("e").experiment_id])) == 1


def test_a_run_that_is_gone_cannot_be_resumed(root: Path, client: MlflowClient) -> None:
    with pytest.raises(ValueError, match=r"run 0123 can't be opened"), start_run(root, "e", "r", TAGS, run_id="0123"):
        pass
    with start_run(root, "e", "r", TAGS) as run:
        pass
    client.delete_run(run.run_id)
    with pytest.raises(ValueError, match="was deleted"), start_run(root, "e", "r", TAGS, run_id=run.run_id):
        pass


def test_whether_a_run_can_be_resumed_is_known_before(root: Path, client: MlflowClient) -> None:
    with start_run(root, "e", "r", TAGS) as run:
        pass
    assert run.run_id is not None
    assert can_resume(root, run.run_id)
    client.delete_run(run.run_id)
    assert not any(can_resume(root, run_id) for run_id in (run.run_id, "0123", "", "no/id"))


PROVENANCE = ("git_revision", "dvc_lock", "hardware")


@pytest.fixture
def origin(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The provenance that runs find; a test changes it between two processes that work on a run."""
    current = dict.fromkeys(PROVENANCE, "training")
    monkeypatch.setattr(run_module, "provenance", lambda _root: dict(current))
    return current


def provenance_tags(client: MlflowClient, run: Run) -> dict[str, str]:
    tags = client.get_run(run.run_id).data.tags
    return {name: value for name, value in tags.items() if name.rpartition(".")[2] in PROVENANCE}


def test_a_resumed_training_keeps_its_provenance(root: Path, client: MlflowClient, origin: dict[str, str]) -> None:
    first = dict(origin)
    with start_run(root, "e", "r") as run:
        assert run.provenance == first
    with start_run(root, "e", "r", run_id=run.run_id):
        pass
    assert provenance_tags(client, run) == first
    origin["git_revision"] = "fixed"
    with start_run(root, "e", "r", run_id=run.run_id) as resumed:
        assert resumed.provenance == first
    assert provenance_tags(client, run) == first | {"resumed.git_revision": "fixed"}


def test_an_evaluation_adds_its_own_provenance(root: Path, client: MlflowClient, origin: dict[str, str]) -> None:
    with start_run(root, "e", "r") as run:
        pass
    before = client.get_run(run.run_id).info
    for value in ("first evaluation", "second evaluation"):
        origin.update(dict.fromkeys(PROVENANCE, value))
        with reopen_run(root, str(run.run_id)) as reopened:
            assert reopened.provenance == dict.fromkeys(PROVENANCE, "training")
            reopened.log_metrics({"test/R@1": 50.0})
            assert client.get_run(run.run_id).info.status == "FINISHED"
    found = client.get_run(run.run_id)
    assert found.data.metrics == {"test/R_at_1": 50.0}
    assert (found.info.status, found.info.end_time) == ("FINISHED", before.end_time)
    expected = {f"evaluation.{name}": "second evaluation" for name in PROVENANCE}
    assert provenance_tags(client, run) == dict.fromkeys(PROVENANCE, "training") | expected


def test_an_evaluation_that_fails_leaves_the_training_finished(root: Path, client: MlflowClient) -> None:
    with start_run(root, "e", "r") as run:
        pass
    with pytest.raises(OSError, match="no clips"), reopen_run(root, str(run.run_id)) as reopened:  # noqa: PT012
        reopened.log_metrics({"test/R@1": 50.0})
        raise OSError("no clips")
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"test/R_at_1": 50.0})
    assert "evaluation.hardware" in found.data.tags
    client.delete_run(run.run_id)
    with pytest.raises(ValueError, match=f"run {run.run_id} was deleted"), reopen_run(root, str(run.run_id)):
        pass


def test_the_columns_of_mlflows_table_are_filled(
    root: Path, client: MlflowClient, origin: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/bin/clip4vla", "pretrain"])
    origin["git_revision"] = "1234abcd-dirty"
    with start_run(root, "pretrain", "r") as run:
        pass
    tags = client.get_run(run.run_id).data.tags
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("clip4vla pretrain", "LOCAL")
    assert (tags["mlflow.source.git.commit"], tags["mlflow.source.git.dirty"]) == ("1234abcd", "true")
    assert tags["mlflow.user"]


def test_headlines_come_before_every_other_metric(root: Path, client: MlflowClient) -> None:
    others = ("loss", "loss/total", "lr", "speed/clips_per_s", "system/cpu", "test/caption/both/CIDEr", "val/x")
    with start_run(root, "e", "r") as run:
        run.log_metrics({**dict.fromkeys(others, 0.0), **dict.fromkeys(HEADLINES.values(), 1.0)})
    names = sorted(client.get_run(run.run_id).data.metrics)
    assert set(names[: len(HEADLINES)]) == set(HEADLINES.values())
    assert names[len(HEADLINES) :] == list(others)


def test_the_headlines_of_scores_are_few_and_short() -> None:
    scores = {"text_to_clip/both/R@1": 57.2345678, "text_to_clip/both/R@5": 80.0, "caption/both/CIDEr": 1.23456}
    assert headline(scores) == {"R1 both": 57.23, "CIDEr": 1.235}
    assert headline({"text_to_clip/both/R@5": 80.0}) == {}


def test_the_kinds_of_query_that_name_one_thing_are_headlines_by_both_modalities() -> None:
    scores = {f"by_query/{kind}/{m}/R@1": 90.0 for kind in ("all", "seen", "heard", "said") for m in ("video", "both")}
    assert headline(scores) == {"R1 seen": 90.0, "R1 heard": 90.0, "R1 said": 90.0}


def test_trials_are_children_of_the_sweep(root: Path, client: MlflowClient) -> None:
    with start_run(root, "ablate", "sweep") as sweep, start_run(root, "ablate", "t", parent=sweep.run_id) as trial:
        pass
    assert client.get_run(trial.run_id).data.tags["mlflow.parentRunId"] == sweep.run_id


def test_a_setting_cannot_change_under_a_run(root: Path) -> None:
    with start_run(root, "e", "r", TAGS) as run:
        run.log_params({"lr": 1})
        run.log_params({"lr": 1})
        with pytest.raises(MlflowException, match="lr"):
            run.log_params({"lr": 2})


def test_other_ranks_record_nothing(tmp_path: Path) -> None:
    with start_run(tmp_path, "e", "r", TAGS, run_id="anything", system_metrics=True, enabled=False) as run:
        assert run.run_id is None
        run.log_params({"lr": 1})
        run.log_metrics({"loss": 1.0}, 1)
        run.flush()
        run.set_tags({"a": "b"})
        run.log_artifact(tmp_path / "missing")
        run.log_figure(Figure(), "f")
        run.log_dataset("d", "0", tmp_path, "train")
    assert list(tmp_path.iterdir()) == []


def test_a_rank_that_records_nothing_does_not_import_mlflow() -> None:
    code = "import sys, clip4vla.training.trainer; from pathlib import Path\n"
    code += "from clip4vla.tracking.run import start_run\n"
    code += "with start_run(Path(), 'e', 'r', enabled=False) as run:\n  run.log_metrics({'loss': 1.0}, 1)\n"
    code += "print([name for name in sys.modules if name == 'mlflow'])"  # below what DeepSpeed prints
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


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
    monkeypatch.setattr(run_module, "FLUSH_SECONDS", 0.01)
    client = FakeClient()
    writer = run_module._MetricWriter(client, "run")
    writer.add({"loss": 0.0}, 0)
    assert client.called.wait(20)
    for step in range(1, 2500):  # while the first batch hangs
        writer.add({"loss": float(step)}, step)
    assert client.written == []
    client.gate.set()
    writer.close()
    assert client.written == [("loss", float(step), step) for step in range(2500)]


def test_a_store_that_is_away_for_a_while_loses_nothing(monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    monkeypatch.setattr(run_module, "FLUSH_SECONDS", 0.01)
    client = FakeClient(away=3)
    client.gate.set()
    writer = run_module._MetricWriter(client, "run")
    writer.add({"loss": 1.0}, 1)
    while client.away:
        client.called.clear()
        assert client.called.wait(20)
    writer.close()
    assert client.written == [("loss", 1.0, 1)]
    assert "1 metrics are not written yet: the store is away" in caplog.text


def test_a_store_that_stays_away_is_an_error_in_the_end() -> None:
    client = FakeClient(away=10**6)
    client.gate.set()
    writer = run_module._MetricWriter(client, "run")
    writer.add({"a": 1.0, "b": 2.0}, 1)
    with pytest.raises(RuntimeError, match="2 metrics of run run are lost: the store is away"):
        writer.close()


def test_what_is_flushed_is_on_record(root: Path, client: MlflowClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "FLUSH_SECONDS", 60.0)  # on a busy machine the store takes its time
    with start_run(root, "e", "r", TAGS) as run:
        run.flush()  # nothing yet
        for step in range(1200):
            run.log_metrics({"loss": float(step)}, step)
        run.flush()
        assert len(client.get_metric_history(run.run_id, "loss")) == 1200


def test_a_flush_does_not_wait_for_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_module, "FLUSH_SECONDS", 0.05)
    client = FakeClient()
    writer = run_module._MetricWriter(client, "run")
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
    monkeypatch.setattr(run_module, "SYSTEM_SECONDS", 0.05)
    run_id, recorded = None, [0]
    for _ in range(2):
        with start_run(root, "e", "r", TAGS, run_id=run_id, system_metrics=True) as run:
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
    with start_run(root, "e", "r", TAGS):
        assert monitors() == []


def test_system_metrics_that_cannot_be_had_cost_a_warning(
    root: Path, client: MlflowClient, monkeypatch, caplog
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no such sensor")

    monkeypatch.setattr(system_metrics_monitor, "SystemMetricsMonitor", fail)
    with start_run(root, "e", "r", TAGS, system_metrics=True) as run:
        run.log_metrics({"loss": 1.0}, 1)
    assert "no system metrics are recorded: no such sensor" in caplog.text
    found = client.get_run(run.run_id)
    assert (found.info.status, found.data.metrics) == ("FINISHED", {"loss": 1.0})


def test_system_metrics_end_with_a_run_that_fails(root: Path, client: MlflowClient) -> None:
    with pytest.raises(RuntimeError), start_run(root, "e", "r", TAGS, system_metrics=True) as run:  # noqa: PT012
        assert len(monitors()) == 1
        raise RuntimeError("out of memory")
    assert monitors() == []
    assert client.get_run(run.run_id).info.status == "FAILED"
