"""The whole graph in miniature: `dvc repro` from a package of stamps to a champion, killed once on the way."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from clip4vla.config import load_config
from clip4vla.corpora.stampscenes.queries import KINDS
from clip4vla.pipeline.params import resolve
from clip4vla.records import MODALITIES, TASKS
from clip4vla.registry.registry import Registry
from clip4vla.utils.supervise import processes_in, wait_until_none_in
from tests.markup import parse
from tests.project import environment, make_project, read_config, run, write_config

STAGES = [
    *("params", "fetch@stampscenes", "corpus@stampscenes"),
    *("manifest@stampscenes-pretraining", "manifest@stampscenes-captions"),
    *("clips@stampscenes-pretraining", "clips@stampscenes-captions"),
    *("pretrain", "finetune@retrieval", "finetune@captioning", "ablate"),
    *("evaluate@pretraining", "evaluate@retrieval", "evaluate@captioning", "promote@retrieval", "promote@captioning"),
]
"""In an order in which they can run; DVC takes another among those that don't depend on each other."""
PRETRAINING = STAGES.index("pretrain")
PRETRAIN = ["-m", "clip4vla", "pretrain"]
"""Arguments of the process of that stage."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_project(tmp_path_factory.mktemp("pipeline"))
    config = read_config(directory)
    config["pretraining"]["epochs"] = 6  # steps enough to be killed among them
    write_config(directory, config)
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
            [stage] = [pid for pid, words in processes_in(project).items() if words[1:4] == PRETRAIN]
            os.kill(stage, signal.SIGKILL)
    assert process.wait() == 255, said
    wait_until_none_in(project)  # no rank outlives its launcher
    return said


@pytest.fixture(scope="module")
def reproduced(project: Path, killed: str) -> str:  # noqa: ARG001
    """What the next `dvc repro` says."""
    done = run(project, "-m", "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def ran(said: str) -> list[str]:
    return re.findall(r"Running stage '([^']+)'", said)


def test_a_killed_stage_fails_and_the_next_repro_goes_on_from_its_checkpoint(killed: str, reproduced: str) -> None:
    assert sorted(ran(killed)) == sorted(STAGES[: PRETRAINING + 1])
    assert ran(reproduced)[0] == STAGES[PRETRAINING]
    assert sorted(ran(reproduced)) == sorted(STAGES[PRETRAINING:])
    steps = [int(step) for step in re.findall(r"step +(\d+)/18 ", reproduced)]
    assert steps[0] > 1, killed + reproduced
    assert steps == list(range(steps[0], 19))


def test_it_ends_with_a_decision_and_a_champion(project: Path, reproduced: str) -> None:
    config = load_config(project / "params.yaml")
    for task in TASKS:
        gate = config.gates.of(task)
        decision = json.loads((project / f"metrics/promotion-{task}.json").read_text())
        assert decision["promote"] is True, reproduced
        assert Registry(project).find_champion(gate.model_name) == decision["version"]
    assert not list((project / "checkpoints").rglob("step*"))


@pytest.mark.usefixtures("reproduced")
def test_captions_are_written_by_each_modality_and_scored(project: Path) -> None:
    found = json.loads((project / "metrics/captioning.json").read_text())
    captions = json.loads((project / "runs/evaluations/captioning/captions.json").read_text())
    assert found["n_clips"] == len(captions) == 8
    for modality in MODALITIES:
        assert {"CIDEr", "BLEU-4", "ROUGE-L"} <= found["caption"][modality].keys()
        assert found["caption"][modality]["slot"].keys() == {"seen", "sound", "speech", "ci95"}
        assert all(isinstance(clip[modality], str) for clip in captions.values())
    assert found["notes"]["tokenizer"]
    assert ("METEOR" in found["caption"]["both"]) is not ("METEOR" in found["notes"])


@pytest.mark.usefixtures("reproduced")
def test_retrieval_is_scored_by_kind_of_query_and_modality_with_the_weights_of_the_experts(project: Path) -> None:
    found = json.loads((project / "metrics/retrieval.json").read_text())
    for group in ("by_query", "held_out"):
        assert found[group].keys() == set(KINDS)
        for of_kind in found[group].values():
            assert sum(of_kind["weight"].values()) == pytest.approx(1)
            for modality in MODALITIES:
                low, high = of_kind[modality]["ci95"]["R@1"]
                assert 0 <= low <= of_kind[modality]["R@1"] <= high <= 100
    decision = json.loads((project / "metrics/promotion-retrieval.json").read_text())
    reasons = "\n".join(decision["reasons"])
    assert [kind for kind in KINDS if f"queries of the kind {kind!r}" not in reasons] == []
    figures = [path.name for path in (project / "runs/evaluations/retrieval").glob("*.png")]
    assert sorted(figures) == ["queries.png", "retrieval.png", "similarity.png"]
    kept = [path.name for path in (project / "mlruns/artifacts/retrieval").rglob("figures/*.png")]
    assert sorted(kept) == ["loss.png", *sorted(figures)]
    assert list((project / "mlruns/artifacts/ablation").rglob("figures/ablation.png"))
    assert json.loads((project / "metrics/ablation.json").read_text()).keys() == {"mean", "experts"}


@pytest.mark.usefixtures("reproduced")
@pytest.mark.parametrize("run_name", ["retrieval", "captioning"])
def test_it_leaves_a_report_with_the_run_that_it_is_about(project: Path, run_name: str) -> None:
    report = project / f"runs/evaluations/{run_name}/report.html"
    root = parse(report.read_text(encoding="utf-8"))
    assert [part.text.split()[0] for part in root.all("h2")] == ["Best", "Median", "Worst"]
    assert root.all("audio")
    for card in root.all("article"):
        assert len(card.all("audio")) == (0 if "No sound." in card.text else 1)
    [kept] = (project / f"mlruns/artifacts/{run_name}").rglob("report.html")
    assert kept.read_bytes() == report.read_bytes()


@pytest.mark.usefixtures("reproduced")
def test_there_is_nothing_left_to_do(project: Path) -> None:
    assert "up to date" in run(project, "-m", "dvc", "status").stdout
    again = run(project, "-m", "dvc", "repro")
    assert again.returncode == 0
    assert ran(again.stdout) == []


@pytest.mark.slow
@pytest.mark.usefixtures("reproduced")
def test_unseen_clips_are_scored_with_their_preset_without_another_training(project: Path) -> None:
    config = read_config(project)
    write_config(project, config | {"preset": "unseen"})
    assert not resolve(project)
    done = run(project, "-m", "dvc", "repro")
    assert done.returncode == 0, done.stdout + done.stderr
    corpora = ("stampscenes-voices", "stampscenes-sounds", "stampscenes-pictures")
    assert sorted(ran(done.stdout)) == sorted(
        [
            *("params", "clipart@openclipart-svg", "unseen@stampscenes-unseen"),
            *(f"{stage}@{corpus}" for stage in ("manifest", "clips") for corpus in corpora),
            *STAGES[STAGES.index("evaluate@pretraining") :],
        ]
    )
    found = json.loads((project / "metrics/retrieval.json").read_text())
    for corpus in corpora:
        assert found["unseen"][corpus].keys() == found["original"][corpus].keys() <= set(KINDS)
        assert {"R@1", "ci95"} <= found["unseen"][corpus]["seen"]["both"].keys()
    assert (project / "runs/evaluations/retrieval/unseen.png").is_file()
    write_config(project, config)
    assert not resolve(project)


@pytest.mark.slow
@pytest.mark.usefixtures("reproduced")
def test_another_language_changes_the_corpus_and_what_follows_but_fetches_nothing(project: Path) -> None:
    config = read_config(project)
    config["stampscenes"]["language"] = "fr"
    write_config(project, config)
    data = run(project, "-m", "dvc", "repro", *STAGES[PRETRAINING - 2 : PRETRAINING])
    assert data.returncode == 0, data.stdout + data.stderr
    assert sorted(ran(data.stdout)) == sorted([STAGES[0], *STAGES[2:PRETRAINING]])
    status = json.loads(run(project, "-m", "dvc", "status", "--json").stdout)
    assert {*STAGES[PRETRAINING : PRETRAINING + 7]} <= status.keys()
    assert not status.keys() & set(STAGES[:PRETRAINING])
