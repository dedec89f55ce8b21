"""The whole graph in miniature: `dvc repro` from a package of stamps to a champion, killed once on the way."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clip4vla.params import load_params
from clip4vla.registry.store import Registry
from tests.project import environment, make_project, read_params, run, write_params

PATIENCE_S = 60.0
STAGES = [
    *("fetch", "corpus", "manifest@stampscenes-pretrain", "manifest@stampscenes-captions"),
    *("clips@stampscenes-pretrain", "clips@stampscenes-captions"),
    *("pretrain", "finetune", "ablate", "evaluate", "promote"),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_project(tmp_path_factory.mktemp("pipeline"))
    params = read_params(directory)
    params["pretrain"]["epochs"] = 6  # steps enough to be killed among them
    write_params(directory, params)
    return directory


@pytest.fixture(scope="module")
def killed(project: Path) -> str:
    """What `dvc repro` says whose stage `pretrain` is killed at its second step."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = ""
    for output in process.stdout:
        said += output
        if re.search(r"step +2/18 ", output):
            [stage] = processes_of(project, "flows.pretrain")
            os.kill(stage, signal.SIGKILL)
    assert process.wait() == 255, said
    deadline = time.monotonic() + PATIENCE_S
    while processes_of(project, "clip4vla.training.run"):
        assert time.monotonic() < deadline, "a rank outlives its launcher"
        time.sleep(0.1)
    return said


@pytest.fixture(scope="module")
def reproduced(project: Path, killed: str) -> str:  # noqa: ARG001
    """What the next `dvc repro` says."""
    done = run(project, "-m", "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def processes_of(project: Path, module: str) -> list[int]:
    """Pythons that run `-m module` in `project`."""
    found = []
    for pid in (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()):
        try:
            arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            here = Path(f"/proc/{pid}/cwd").readlink() == project
        except OSError:  # gone, or not ours
            continue
        found += [pid] if here and arguments[1:3] == [b"-m", module.encode()] else []
    return found


def ran(said: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", said)


def test_a_killed_stage_fails_and_the_next_repro_goes_on_from_its_checkpoint(killed: str, reproduced: str) -> None:
    assert ran(killed) == STAGES[:7]
    assert ran(reproduced) == STAGES[6:]
    steps = [int(step) for step in re.findall(r"step +(\d+)/18 ", reproduced)]
    assert steps[0] > 1, killed + reproduced
    assert steps == list(range(steps[0], 19))


def test_it_ends_with_a_decision_and_a_champion(project: Path, reproduced: str) -> None:
    decision = json.loads((project / "metrics/promotion.json").read_text())
    assert decision["promote"] is True, reproduced
    champion = Registry(project).champion(load_params(project / "params.yaml").gate.model_name)
    assert champion is not None
    assert champion[0] == decision["version"]
    assert not list((project / "checkpoints").rglob("step*"))


@pytest.mark.usefixtures("reproduced")
def test_there_is_nothing_left_to_do(project: Path) -> None:
    assert "up to date" in run(project, "-m", "dvc", "status").stdout
    again = run(project, "-m", "dvc", "repro")
    assert again.returncode == 0
    assert ran(again.stdout) == []


@pytest.mark.slow
@pytest.mark.usefixtures("reproduced")
def test_another_language_changes_the_corpus_and_what_follows_but_fetches_nothing(project: Path) -> None:
    params = read_params(project)
    params["stampscenes"]["language"] = "fr"
    write_params(project, params)
    data = run(project, "-m", "dvc", "repro", *STAGES[4:6])
    assert data.returncode == 0, data.stdout + data.stderr
    assert ran(data.stdout) == STAGES[1:6]
    status = json.loads(run(project, "-m", "dvc", "status", "--json").stdout)
    assert {"pretrain", "finetune", "ablate", "evaluate"} <= status.keys()
    assert not status.keys() & set(STAGES[:6])
