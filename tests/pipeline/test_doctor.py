"""`clip4vla doctor`: each need is missed where it is not met, and only there."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from clip4vla.pipeline import doctor
from clip4vla.pipeline.doctor import Check, clip_bytes, examine, report
from clip4vla.training.memory import MARGIN, StateBytes, StepMemory, TrainingCost
from tests.project import REPOSITORY, TINY_CONFIG, write_config
from tests.shards import write_shard

FOLDER = {"adapter": "folder", "annotations": "mine", "media": "mine/media"}
STATE = StateBytes(weights=1, gradients=1, moments=1, largest_moments=1, exchanged=0, clip=1)
CHEAP = TrainingCost(StepMemory(STATE, 1, lambda *_: 1), clip_flops=1, comparing=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a folder of its own, in which nothing is missing."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "presets", "presets")
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    tree["preset"] = "own-captions"
    tree["corpora"] = {"mine": FOLDER | {"role": "finetuning"}, "others": FOLDER | {"role": "pretraining"}}
    write_config(tmp_path, tree)
    (tmp_path / "mine/media").mkdir(parents=True)
    (tmp_path / "mine/media/bell.wav").write_bytes(b"RIFF")
    rows = [f"bell.wav,a bell rings,{start},{start + 10},{split}" for start, split in ((0, "train"), (10, "val"))]
    (tmp_path / "mine/texts.csv").write_text("\n".join(["path,text,start,end,split", *rows, "bell.wav,a,20,30,test"]))
    monkeypatch.setattr(doctor, "cost_of", lambda *_: CHEAP)
    monkeypatch.setattr("clip4vla.training.memory.available_memory", lambda: 64_000_000_000)
    monkeypatch.setattr(doctor, "free_disk", lambda _: 10_000_000_000)
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return tmp_path


def change(project: Path, section: str, **values: object) -> None:
    tree = yaml.safe_load((project / "params.yaml").read_text())
    tree[section] |= values
    write_config(project, tree)


def missing() -> list[str]:
    return [check.line() for check in examine() if check.missing]


def lines_of() -> list[str]:
    return [check.line() for check in examine()]


@pytest.mark.usefixtures("project")
def test_nothing_is_missing_where_everything_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(examine())
    lines = capsys.readouterr().out.splitlines()
    assert "ok       corpus mine: 3 clips in its annotations, 1 files in mine/media" in lines
    assert lines[-1] == "nothing is missing"


def test_missing_needs_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert not report([Check("Java", "there is none", "Install it."), Check("weights")])
    assert capsys.readouterr().out.splitlines() == [
        "MISSING  Java: there is none. Install it.",
        "ok       weights",
        "1 of 2 needs are missing",
    ]


def test_annotations_media_and_splits_are_missed(project: Path) -> None:
    table = project / "mine/texts.csv"
    table.write_text("path,text,start,end,split\nbell.wav,a bell rings,0,10,train\n")
    assert missing() == [
        f"MISSING  {split} clips for finetuning: mine have none. "
        f"List some as {split} (docs/data.md says how for each corpus)."
        for split in ("val", "test")
    ]
    table.write_text("pith,text\nbell.wav,a bell rings\n")
    [line, _] = missing()
    assert "corpus mine: mine/texts.csv" in line
    shutil.rmtree(project / "mine/media")
    table.write_text("path,text\nbell.wav,a bell rings\n")
    assert any("there are no files in mine/media" in line for line in missing())
    shutil.rmtree(project / "mine")
    assert [line for line in missing() if "no directory of annotations mine" in line] == missing()


def test_shards_are_annotations_and_media(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards = {"adapter": "webdataset", "role": "pretraining", "media": "shards"}
    change(project, "corpora", others=shards)
    (line,) = missing()
    assert "no directory of annotations shards" in line
    sample = {"mp4": b"media", "txt": "a bell"}
    write_shard(project / "shards/00000.tar", {"a": sample, "b": sample, "c": {"txt": "no media"}})
    assert report(examine())
    assert "corpus others: 2 clips in its annotations, 1 files in shards" in capsys.readouterr().out


def test_stampscenes_needs_its_package(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(REPOSITORY / "params.yaml", project)
    assert missing() == []
    monkeypatch.setattr("shutil.which", lambda name: None if name == "apt-get" else name)
    [line] = missing()
    assert line.startswith("MISSING  StampScenes' package: there is no apt-get to download it. ")
    change(project, "stampscenes", package="stamps.deb")
    assert "stampscenes.package names stamps.deb, which is no file" in missing()[0]
    (project / "stamps.deb").touch()
    assert missing() == []


def test_unseen_clips_need_both_packages_and_what_renders_them(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(REPOSITORY / "params.yaml", project)
    write_config(project, yaml.safe_load((project / "params.yaml").read_text()) | {"preset": "unseen"})
    assert missing() == []
    monkeypatch.setattr("shutil.which", lambda name: None if name == "apt-get" else name)
    monkeypatch.setattr(doctor, "find_spec", lambda module: None if module == "pedalboard" else module)
    stamps, clipart, renderer = missing()
    assert stamps.startswith("MISSING  StampScenes' package: there is no apt-get to download it. ")
    assert clipart.startswith("MISSING  package of clip art: there is no apt-get to download it. ")
    assert renderer == (
        "MISSING  package for corpora of unseen clips: pedalboard is not installed. Install it: "
        "`pip install '.[stampscenes]' -c constraints.txt`."
    )


def test_a_corpus_of_unseen_clips_of_ones_own_needs_test_clips(project: Path) -> None:
    (project / "mine/queries.json").write_text("{}")
    unseen = FOLDER | {"role": "unseen"}
    mine = {"corpora": {"again": unseen}, "evaluation": {"queries": "mine/queries.json"}}
    (project / "presets/mine.yaml").write_text(yaml.safe_dump(mine))
    tree = yaml.safe_load((project / "params.yaml").read_text())
    write_config(project, tree | {"preset": ["own-captions", "mine"]})
    assert missing() == []
    texts = (project / "mine/texts.csv").read_text()
    (project / "mine/texts.csv").write_text(texts.replace(",test", ",val"))
    assert [line.split(":")[0] for line in missing()] == [
        "MISSING  test clips for finetuning",
        "MISSING  test clips for unseen",
    ]


def test_files_of_the_evaluation_are_missed(project: Path) -> None:
    (project / "presets/mine.yaml").write_text("evaluation: {queries: queries.json}")
    tree = yaml.safe_load((project / "params.yaml").read_text())
    write_config(project, tree | {"preset": ["own-captions", "mine"]})
    [line] = missing()
    assert "evaluation.queries: there is no file queries.json. Write it, or set evaluation.queries: null." in line
    (project / "queries.json").write_text("{}")
    assert missing() == []


def test_disk_space_is_for_clips_that_are_not_there_yet_and_dvc_s_copy(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    change(project, "clips", frames=1000, size=1000)
    one = 1000 * 0.33 * 1e6 * 16 / 9 + 10 * 64_000 + 1000
    assert clip_bytes(doctor.load_config().clips, 10.0) == pytest.approx(one)
    monkeypatch.setattr(doctor, "free_disk", lambda _: round(2 * 6 * one) - 1)
    [line] = missing()
    assert "disk space: about 7.0 GB for clips and a copy in the cache of DVC: only 7.0 GB are free. Free some" in line
    (project / ".dvc").mkdir()
    (project / ".dvc/config").write_text("[core]\n    remote = team\n['remote \"team\"']\n    url = s3://links/100%\n")
    assert missing() == [line]
    (project / ".dvc/config").write_text("[cache]\n    type = reflink,hardlink\n")
    assert missing() == []
    (project / ".dvc/config").unlink()
    (project / "data/clips/finetuning/mine").mkdir(parents=True)
    assert missing() == []


def test_weights_are_missed_that_are_neither_here_nor_in_reach(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_weights", lambda *_: "https://example.org/ViT-B-32.pt")
    change(project, "model", architecture="ViT-B-32", weights="openai")
    monkeypatch.setattr(doctor, "answers", lambda _: True)
    assert missing() == []
    monkeypatch.setattr(doctor, "answers", lambda _: False)
    [line] = missing()
    assert "https://example.org/ViT-B-32.pt can't be reached. Bring the checkpoint here and name its path" in line


def test_a_micro_batch_that_does_not_fit_is_missed_with_one_that_does(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = StepMemory(STATE, 10, lambda clips, recomputed: round(clips * (2 - 0.1 * recomputed) * 1e9 / MARGIN))
    monkeypatch.setattr(doctor, "cost_of", lambda *_: TrainingCost(memory, 1, comparing=True))
    change(project, "trainer", cpu_ranks=2)
    monkeypatch.setattr("clip4vla.training.memory.available_memory", lambda: 40_000_000_000)
    lines = missing()
    assert [line.split(":")[0] for line in lines] == ["MISSING  memory of retrieval"]
    assert (
        "a micro-batch of 24 takes at least 25 GB of a rank, which has 18 GB: retrieval.micro_batch_size: 12"
        in lines[0]
    )
    change(project, "retrieval", micro_batch_size="auto")
    assert missing() == []
    assert any(
        "retrieval: memory: about 18 GB of the 18 GB of a rank, micro-batches of 12" in line for line in lines_of()
    )
    change(project, "trainer", memory_gb=30)
    assert any(
        "retrieval: memory: about 30 GB of the 30 GB of a rank, micro-batches of 24" in line for line in lines_of()
    )


def test_a_step_that_takes_too_long_without_a_gpu_is_missed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cost_of", lambda *_: replace(CHEAP, clip_flops=10**15))
    assert all(": there is no GPU. Train on a machine with GPUs" in line for line in missing())
    assert len(missing()) == 3
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda: (80_000_000_000, 80_000_000_000))
    assert missing() == []
    change(project, "trainer", ranks=5)
    assert any("pretraining.batch_size 32: 5 ranks can't share it equally" in line for line in missing())


def test_java_and_optional_packages_are_missed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    monkeypatch.setattr(doctor, "find_spec", lambda _: None)
    change(project, "clips", verbal_above=0.3, dask="tcp://host:8786")
    speech, dask, java = missing()
    assert "silero_vad is not installed. Install it: `pip install '.[speech]'" in speech
    assert "distributed is not installed. Install it: `pip install '.[dask]'" in dask
    assert java.startswith("MISSING  Java: ")


def test_the_miniature_of_the_tests_can_run(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.chdir(project)
    change(project, "trainer", **TINY_CONFIG["trainer"])
    assert [line for line in missing() if "memory" in line or "step" in line] == []
