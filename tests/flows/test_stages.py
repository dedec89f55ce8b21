"""A stage of dvc.yaml as a Prefect task, on a stand-in for DVC."""

import os
import signal
import sys
from pathlib import Path

import pytest
from prefect import flow
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client

from clip4vla.pipeline.summary import StageSummary
from clip4vla.utils.files import write_json
from flows.graph import Graph
from flows.pipeline import summary_table, walk
from flows.stages import DONE, FAILED, UNCHANGED, StageResult, TrainingProgress, reproduce

GRAPH = Graph({"start": frozenset(), "middle": frozenset({"start"}), "last": frozenset({"middle"})})


@pytest.fixture
def dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the supervised dvc, which notes its arguments and runs `dvc.sh`."""
    python = tmp_path / "python"
    supervise = f'[ "$2" = clip4vla.utils.supervise ] && exec {sys.executable} "$@"'
    python.write_text(f'#!/bin/sh\n{supervise}\necho "$@" >> {tmp_path}/calls\n. {tmp_path}/dvc.sh\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    (tmp_path / "dvc.sh").write_text("exit 0")
    monkeypatch.setattr("flows.stages._summarise", lambda stage: StageSummary(f"R@1 of {stage}", f"# {stage}"))
    return tmp_path


def test_one_stage_is_reproduced_and_forced_on_demand(dvc: Path) -> None:
    assert reproduce("pretrain", force=False)
    assert reproduce("finetune@retrieval", force=True)
    assert (dvc / "calls").read_text().splitlines() == [
        "-m dvc repro --single-item pretrain",
        "-m dvc repro --single-item --force finetune@retrieval",
    ]


def test_a_stage_that_did_not_change_is_told_from_one_that_ran(dvc: Path) -> None:
    (dvc / "dvc.sh").write_text("echo \"Stage 'pretrain' didn't change, skipping\"")
    assert not reproduce("pretrain", force=False)
    (dvc / "dvc.sh").write_text("echo \"Running stage 'pretrain':\"")
    assert reproduce("pretrain", force=False)


def test_the_output_and_the_failure_of_dvc_come_through(dvc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dvc / "dvc.sh").write_text("echo a line; echo an error >&2; exit 255")
    with pytest.raises(RuntimeError, match="--single-item pretrain` ended with status 255: its output above"):
        reproduce("pretrain", force=False)
    assert capsys.readouterr().out == "a line\nan error\n"


def test_what_a_killed_dvc_has_left_is_repaired_before_the_next_try(dvc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(dvc)
    monkeypatch.setattr("clip4vla.pipeline.dvc_files.WRITING_S", 0.3)
    (dvc / "dvc.sh").write_text(": > dvc.lock; kill -KILL $$")
    with pytest.raises(RuntimeError, match="pretrain"):
        reproduce("pretrain", force=False)
    (dvc / "dvc.sh").write_text("test ! -e dvc.lock")
    assert reproduce("pretrain", force=False)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (
            "ERROR: 'runs/pretraining' is busy, it is being blocked by:\n  (PID 42): repro pretrain\n",
            r"another command uses the same files \(`dvc repro pretrain`, process 42\)",
        ),
        ("ERROR: Unable to acquire lock. Most likely another DVC process is running", "another dvc command runs"),
        ("clip4vla: params.yaml is not valid:\nERROR: failed to reproduce", r"clip4vla: params\.yaml is not valid:"),
    ],
)
def test_the_reason_of_a_failure_is_in_its_message(dvc: Path, output: str, reason: str) -> None:
    (dvc / "output").write_text(output)
    (dvc / "dvc.sh").write_text(f"cat {dvc}/output; exit 255")
    with pytest.raises(RuntimeError, match=reason):
        reproduce("pretrain", force=False)


@pytest.mark.usefixtures("prefect")
def test_a_walk_is_a_task_for_each_stage_with_its_state_and_a_summary(dvc: Path) -> None:
    (dvc / "dvc.sh").write_text('case "$*" in *start) echo "Stage \'start\' didn\'t change, skipping";; esac')

    @flow(name="walk-all")
    def everything() -> None:
        walk(GRAPH, GRAPH.order, ["last"], retries=0)

    everything()
    assert (dvc / "calls").read_text().splitlines() == [
        "-m dvc repro --single-item start",
        "-m dvc repro --single-item middle",
        "-m dvc repro --single-item --force last",
    ]
    with get_client(sync_client=True) as client:
        runs = client.read_task_runs(limit=3)
    assert {run.name: run.state_name for run in runs} == {"start": UNCHANGED, "middle": DONE, "last": DONE}
    summary, report = Artifact.get("summary"), Artifact.get("last")
    assert summary is not None
    assert report is not None
    assert "| start | unchanged | " in str(summary.data)
    assert "| last | done | " in str(summary.data)
    assert "R@1 of last" in str(summary.data)
    assert report.data == "# last"
    assert Artifact.get("start") is None, "an unchanged stage has nothing new to report"


@pytest.mark.usefixtures("prefect")
def test_a_stage_that_fails_ends_the_walk_and_stands_in_the_summary(dvc: Path) -> None:
    (dvc / "dvc.sh").write_text('case "$*" in *middle) echo "clip4vla: no clips"; exit 255;; esac')

    @flow(name="walk-broken")
    def broken() -> None:
        walk(GRAPH, GRAPH.order, [], retries=1)

    with pytest.raises(RuntimeError, match=r"stage middle failed: .*clip4vla: no clips"):
        broken()
    assert [call.split()[-1] for call in (dvc / "calls").read_text().splitlines()] == ["start", "middle", "middle"]
    summary = Artifact.get("summary")
    assert summary is not None
    assert "| middle | failed | " in str(summary.data)


def test_the_summary_has_state_duration_and_headline_of_each_stage() -> None:
    table = summary_table([StageResult("pretrain", DONE, 75.2, "150 clips/s"), StageResult("ablate", FAILED, 3.0, "")])
    assert "| pretrain | done | 1 min 15 s | 150 clips/s |" in table
    assert "| ablate | failed | 3 s |  |" in table


@pytest.mark.usefixtures("prefect")
def test_a_decision_is_announced_when_it_was_made(dvc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announced: list[tuple[object, ...]] = []
    decision = {"model": "clip4vla", "version": "3", "promote": False, "reasons": ["FAIL: worse"]}
    monkeypatch.setattr("clip4vla.pipeline.summary.read_decision", lambda task: decision | {"version": task})
    monkeypatch.setattr("flows.stages.emit_decision", lambda *about: announced.append(about))
    monkeypatch.setattr("flows.pipeline._comparison", lambda task: f"compare {task}")
    graph = Graph({"promote@retrieval": frozenset(), "promote@captioning": frozenset(), "pretrain": frozenset()})
    skipped = "Stage 'promote@retrieval' didn't change, skipping"
    (dvc / "dvc.sh").write_text(f'case "$*" in *retrieval) echo "{skipped}";; esac')

    @flow(name="walk-promotions")
    def promotions() -> None:
        walk(graph, graph.order, [], retries=0)

    promotions()
    assert announced == [("clip4vla", "captioning", False, "# promote@captioning")]


@pytest.mark.usefixtures("prefect")
def test_the_progress_of_a_training_is_shown_while_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.stages.PROGRESS_EVERY_S", 0.0)
    stopped = tmp_path / "stopped/progress.json"
    stopped.parent.mkdir()
    stopped.write_text('{"step": 1, "steps": 4}')
    os.utime(stopped, (1, 1))
    going = tmp_path / "ablation/none/progress.json"
    going.parent.mkdir(parents=True)

    def shown() -> object:
        artifact = Artifact.get("progress-ablation-none")
        return artifact and artifact.data

    @flow(name="stage-progress")
    def stage() -> list[object]:
        progress, seen = TrainingProgress(tmp_path), []
        for step in (0, 1, 3):
            if step:
                write_json(going, {"step": step, "steps": 4})
            progress.show()
            seen.append(shown())
        going.unlink()
        progress.show()
        return [*seen, shown()]

    assert stage() == [None, 25.0, 75.0, 100.0]
    assert Artifact.get("progress-stopped") is None


def test_an_interruption_of_the_flow_ends_dvc(dvc: Path) -> None:
    (dvc / "dvc.sh").write_text(
        f"trap 'echo stopped > {dvc}/stopped; exit 1' TERM; echo ready; while :; do sleep 0.05; done"
    )

    class Cancelled(BaseException):
        pass

    def cancel(*_: object) -> None:
        raise Cancelled

    before = signal.signal(signal.SIGALRM, cancel)
    signal.setitimer(signal.ITIMER_REAL, 3.0)
    try:
        with pytest.raises(Cancelled):
            reproduce("pretrain", force=False)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (dvc / "stopped").read_text() == "stopped\n"
