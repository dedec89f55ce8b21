"""Names and paths of params.yaml and presets never reach a shell."""

from pathlib import Path

import pytest
import yaml

from clip4vla.pipeline.params import GRAPH, RESOLVED, resolve
from tests.project import REPOSITORY, make_project, read_config, run, write_config

NAMES = ("a; touch reached", "it's; touch reached; echo '", "$(touch reached)", '"; touch reached; "')


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project whose own corpus is in folders with a space and a quote in their names."""
    directory = make_project(tmp_path_factory.mktemp("project"))
    for folder in ("it's mine", "my videos; touch reached"):
        (directory / folder).mkdir()
    (directory / "it's mine/texts.csv").write_text("path,text\nbell.wav,a bell rings\n")
    (directory / "my videos; touch reached/bell.wav").write_bytes(b"RIFF")
    config = read_config(directory)
    corpus = {"adapter": "folder", "annotations": "it's mine", "media": "my videos; touch reached"}
    config["corpora"] = {"mine": corpus | {"role": "finetuning"}, "others": corpus | {"role": "pretraining"}}
    write_config(directory, config)
    assert not resolve(directory)  # other stages than before
    return directory


def test_folders_may_have_any_name(project: Path) -> None:
    done = run(project, "-m", "dvc", "repro", "manifest@mine")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / "data/manifests/mine").is_dir()
    assert not list(project.glob("reached*"))


@pytest.mark.parametrize("name", NAMES)
def test_the_name_of_a_corpus_is_no_command(project: Path, name: str) -> None:
    config = read_config(project)
    before = config["corpora"]
    write_config(project, config | {"corpora": before | {name: before["mine"]}})
    try:
        done = run(project, "-m", "dvc", "repro")
        resolved = project / RESOLVED
        kept = resolved.read_text()
        tree = yaml.safe_load(kept)
        for corpora in (tree["corpora"], tree[GRAPH]["corpora"]):  # as no command writes it
            corpora[name] = corpora["mine"]
        resolved.write_text(yaml.safe_dump(tree))
        forged = run(project, "-m", "dvc", "repro", "--single-item", f"manifest@{name}")
        resolved.write_text(kept)
    finally:
        write_config(project, config)
    for failed in (done, forged):
        assert failed.returncode != 0
        assert f"the corpus name {name!r} must consist of letters" in failed.stderr
    assert not list(project.rglob("reached*"))


def test_no_command_of_a_stage_contains_a_parameter() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        if isinstance(stage.get("foreach", []), list):  # names that dvc.yaml itself lists
            assert stage.get("do", stage)["cmd"].replace("${item}", "").count("$") == 0, name
        else:
            assert "${" not in stage["do"]["cmd"], name
