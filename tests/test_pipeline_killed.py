"""The whole graph in miniature, in which every stage is killed once, with everything it started, and begun again."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import lance
import pyarrow.parquet as pq
import pytest

from clip4vla.corpora.manifest import read_manifest
from clip4vla.utils.supervise import children, kill_process_tree
from tests.project import environment, make_project, run
from tests.test_pipeline import STAGES, ran

LONGEST_S = 4.0
"""A stage of the miniature takes a few seconds, most of which go into starting Python; the first ones take less."""

pytestmark = pytest.mark.slow


def repro_killed_in(project: Path, stages: list[str], after_s: float) -> list[str]:
    """The stages that `dvc repro` runs until it is killed, DVC and all, `after_s` seconds into one of `stages`."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=project,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=0,
    )
    assert process.stdout is not None
    said = ""
    for output in process.stdout:
        said += output
        if set(ran(output)) & set(stages):
            while not children(process.pid):  # DVC killed while it writes its own lock leaves it unreadable
                time.sleep(0.01)
            time.sleep(after_s)
            kill_process_tree(process.pid)
            break
    said += process.stdout.read()
    assert process.wait() == -signal.SIGKILL, said
    return ran(said)


@pytest.fixture(scope="module")
def killed_everywhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project in which `dvc repro` was killed as often as it has stages, each time in the next one or a later one."""
    project = make_project(tmp_path_factory.mktemp("killed"))
    moments = random.Random(0)
    killed_in, left = [], STAGES
    while left:
        longest = LONGEST_S if left[0] in STAGES[5:] else LONGEST_S / 8
        killed_in.append(repro_killed_in(project, left, moments.uniform(0, longest))[-1])
        left = STAGES[STAGES.index(killed_in[-1]) + 1 :]
    assert len(killed_in) >= len(STAGES) - 2, f"too many stages were done before they were killed: {killed_in}"
    done = run(project, "-m", "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def test_every_data_set_is_whole(killed_everywhere: Path) -> None:
    for role, corpus in (("pretraining", "stampscenes-pretraining"), ("finetuning", "stampscenes-captions")):
        manifest = pq.read_table(killed_everywhere / f"data/manifests/{corpus}/manifest.parquet")
        clips = [
            clip
            for split in (killed_everywhere / f"data/clips/{role}/{corpus}").glob("*.lance")
            for clip in lance.dataset(str(split)).to_table(columns=["clip_id"])["clip_id"].to_pylist()
        ]
        assert sorted(clips) == sorted(manifest["clip_id"].to_pylist())


def test_every_score_is_of_all_test_clips(killed_everywhere: Path) -> None:
    scores = json.loads((killed_everywhere / "metrics/retrieval.json").read_text())
    records = read_manifest(killed_everywhere / "data/manifests/stampscenes-captions/manifest.parquet")
    tested = [record for record in records if record.split == "test"]
    assert scores["n_clips"] == len(tested) > 0
    assert scores["n_queries"] == sum(len(record.texts) for record in tested)


def test_there_is_nothing_left_to_do(killed_everywhere: Path) -> None:
    assert "up to date" in run(killed_everywhere, "-m", "dvc", "status").stdout
    assert json.loads((killed_everywhere / "metrics/promotion-retrieval.json").read_text())["promote"] is True
