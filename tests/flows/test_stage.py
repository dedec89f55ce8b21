"""A stage as a flow: its steps as tasks, through DVC, or plain inside DVC."""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml
from prefect import flow
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client

from clip4vla.atomic import write_json
from flows.stage import MARK, Progress, Stage, reproduce
from flows.tasks import TASKS, name_on_command_line
from tests.project import REPOSITORY

DONE: list[str] = []


def first() -> None:
    DONE.append("first")


def second() -> None:
    DONE.append("second")


def broken() -> None:
    raise ValueError("no clips")


@pytest.fixture(autouse=True)
def nothing_done() -> None:
    DONE.clear()


@pytest.fixture
def dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for dvc on its leash, which notes what it was called with and does what `dvc.sh` says."""
    python = tmp_path / "python"
    leash = f'[ "$2" = flows.leash ] && exec {sys.executable} "$@"'
    python.write_text(f'#!/bin/sh\n{leash}\necho "$@ $%s" >> {tmp_path}/calls\n. {tmp_path}/dvc.sh\n' % MARK)
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.delenv(MARK, raising=False)
    (tmp_path / "dvc.sh").write_text("exit 0")
    return tmp_path


@pytest.mark.usefixtures("prefect")
def test_steps_run_in_order_as_tasks_and_the_report_is_kept() -> None:
    @flow(name="stage-in-order")
    def stage() -> None:
        Stage("in-order", (first, second), lambda: f"# done {len(DONE)}").run(through_dvc=False, force=False)

    stage()
    assert DONE == ["first", "second"]
    report = Artifact.get("in-order")
    assert report is not None
    assert report.data == "# done 2"
    with get_client(sync_client=True) as client:
        names = [run.name for run in client.read_task_runs(limit=2)]
    assert {name.rsplit("-", 1)[0] for name in names} == {"first", "second"}


@pytest.mark.usefixtures("prefect")
def test_a_step_that_fails_fails_the_flow_and_ends_it() -> None:
    @flow(name="stage-broken")
    def stage() -> None:
        Stage("broken", (first, broken, second), lambda: "# never").run(through_dvc=False, force=False)

    with pytest.raises(ValueError, match="no clips"):
        stage()
    assert DONE == ["first"]
    assert Artifact.get("broken") is None


@pytest.mark.usefixtures("prefect")
def test_the_command_ends_with_the_message_of_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MARK, raising=False)
    failing = Stage("broken", (broken,), lambda: "# never")

    @flow(name="stage-command")
    def stage() -> None:
        failing.run(through_dvc=False, force=False)

    with pytest.raises(SystemExit, match=r"^broken: no clips$"):
        failing.main(stage)


@pytest.mark.usefixtures("prefect")
def test_through_dvc_the_steps_are_left_to_dvc(dvc: Path) -> None:
    @flow(name="stage-through")
    def stage() -> None:
        Stage("through", (first,), lambda: "# by dvc").run(through_dvc=True, force=False)

    stage()
    assert DONE == []
    assert (dvc / "calls").read_text() == "-m dvc repro through 1\n"
    report = Artifact.get("through")
    assert report is not None
    assert report.data == "# by dvc"


@pytest.mark.usefixtures("prefect")
def test_onwards_the_whole_graph_is_reproduced_and_every_stage_reports(dvc: Path) -> None:
    rest = tuple(Stage(name, (), lambda name=name: f"# {name}") for name in ("middle", "last"))

    @flow(name="stage-onwards")
    def stage(force: bool) -> None:
        Stage("start", (first,), lambda: "# start").run(through_dvc=True, force=force, onwards=rest)

    stage(force=False)
    assert (dvc / "calls").read_text() == "-m dvc repro 1\n"
    stage(force=True)
    assert (dvc / "calls").read_text().splitlines()[1:] == ["-m dvc repro start -f -s 1", "-m dvc repro 1"]
    for name in ("start", "middle", "last"):
        report = Artifact.get(name)
        assert report is not None
        assert report.data == f"# {name}"


def test_forcing_reruns_the_one_stage(dvc: Path) -> None:
    reproduce("pretrain", force=True)
    assert (dvc / "calls").read_text() == "-m dvc repro pretrain -f -s 1\n"


def test_dvc_s_output_and_failure_come_through(dvc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (dvc / "dvc.sh").write_text("echo a line; echo an error >&2; exit 255")
    with pytest.raises(RuntimeError, match="`dvc repro pretrain` ended with status 255: its output above"):
        reproduce("pretrain", force=False)
    assert capsys.readouterr().out == "a line\nan error\n"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (
            "ERROR: 'runs/pretrain' is busy, it is being blocked by:\n  (PID 42): repro pretrain\n",
            r"another one is at work on the same files \(`dvc repro pretrain`, process 42\)",
        ),
        ("ERROR: Unable to acquire lock. Most likely another DVC process is running", "another dvc command is at work"),
    ],
)
def test_a_second_reproduction_at_the_same_time_is_told_so(dvc: Path, said: str, why: str) -> None:
    (dvc / "said").write_text(said)
    (dvc / "dvc.sh").write_text(f"cat {dvc}/said; exit 255")
    with pytest.raises(RuntimeError, match=why):
        reproduce("pretrain", force=False)


@pytest.mark.usefixtures("prefect")
def test_a_training_s_progress_is_shown_while_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flows.stage.PROGRESS_EVERY_S", 0.0)
    stopped = tmp_path / "stopped/progress.json"
    stopped.parent.mkdir()
    stopped.write_text('{"step": 1, "steps": 4}')
    os.utime(stopped, (1, 1))
    going = tmp_path / "ablate/none/progress.json"
    going.parent.mkdir(parents=True)

    def shown() -> object:
        artifact = Artifact.get("progress-ablate-none")
        return artifact and artifact.data

    @flow(name="stage-progress")
    def stage() -> list[object]:
        progress, seen = Progress(tmp_path), []
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


def test_what_interrupts_the_flow_ends_dvc(dvc: Path) -> None:
    (dvc / "dvc.sh").write_text(
        f"trap 'echo stopped > {dvc}/stopped; exit 1' TERM; echo ready; while :; do sleep 0.05; done"
    )

    class Cancelled(BaseException):
        pass

    def cancel(*_: object) -> None:
        raise Cancelled

    before = signal.signal(signal.SIGALRM, cancel)
    signal.setitimer(signal.ITIMER_REAL, 1.0)
    try:
        with pytest.raises(Cancelled):
            reproduce("pretrain", force=False)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert (dvc / "stopped").read_text() == "stopped\n"


def test_inside_dvc_the_mark_runs_the_steps_plainly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARK, "1")
    monkeypatch.setattr(os, "environ", dict(os.environ))

    @flow(name="stage-never")
    def never() -> None:
        raise AssertionError("a flow run")

    Stage("plain", (first, second), lambda: "").main(never)
    assert DONE == ["first", "second"]


@pytest.mark.usefixtures("prefect")
def test_a_stage_of_a_task_has_an_artifact_of_its_own_and_tasks_named_after_their_functions() -> None:
    def note(what: str) -> None:
        DONE.append(what)

    @flow(name="stage-of-a-task")
    def stage() -> None:
        Stage("finetune@smelling", (partial(note, "rose"),), lambda: "# smelt").run(through_dvc=False, force=False)

    stage()
    assert DONE == ["rose"]
    report = Artifact.get("finetune-smelling")
    assert report is not None
    assert report.data == "# smelt"
    with get_client(sync_client=True) as client:
        [last] = client.read_task_runs(limit=1)
    assert last.name.startswith("note-")


GRAPH = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]


@pytest.mark.parametrize("name", ["pretrain", "ablate"])
def test_each_stage_of_the_graph_has_the_flow_of_its_name(name: str) -> None:
    module = __import__(f"flows.{name}", fromlist=["STAGE"])
    assert module.STAGE.name == name
    assert getattr(module, name).name == name
    assert GRAPH[name]["cmd"] == f"python -m flows.{name}"


@pytest.mark.parametrize("name", ["finetune", "evaluate", "promote"])
def test_each_stage_of_a_task_has_a_flow_that_takes_it(name: str) -> None:
    module = __import__(f"flows.{name}", fromlist=["STAGES"])
    assert {stage.name for stage in module.STAGES.values()} == {f"{name}@{key}" for key in GRAPH[name]["foreach"]}
    assert all(stage.name == f"{name}@{key}" for key, stage in module.STAGES.items())
    assert getattr(module, name).name == name
    assert GRAPH[name]["do"]["cmd"] == f"python -m flows.{name} ${{key}}"


def test_files_of_a_task_are_those_of_the_graph() -> None:
    for name, task in TASKS.items():
        assert GRAPH["finetune"]["foreach"][name] == task.run
        assert GRAPH["evaluate"]["foreach"][name] == {"run": task.run, "metrics": task.metrics}
        expected = {"run": task.run, "gate": task.gate_section, "decision": task.decision}
        assert GRAPH["promote"]["foreach"][name] == expected


@pytest.mark.parametrize("arguments", [[], ["smelling"], ["retrieval", "captioning"]])
def test_a_command_for_no_task_says_which_there_are(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["flows/promote.py", *arguments])
    with pytest.raises(SystemExit, match=r"usage: python -m flows\.promote \{retrieval,captioning\}"):
        name_on_command_line(TASKS)
