"""Stages `manifest` and `clips`: a corpus named in params.yaml goes to the directories of its name and role."""

from pathlib import Path

import lance
import pytest
import yaml

from clip4vla.pipeline.data import ingest_corpus, write_corpus_manifest
from tests.clips.conftest import write_kind
from tests.project import REPOSITORY


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project whose corpus `mine` has three readable files and a broken one."""
    media = tmp_path / "media"
    media.mkdir()
    names = [write_kind(media, kind) for kind in ("mono", "silent", "sound")]
    (media / "broken.mp4").write_text("no video")
    lines = [f"{name},a sentence,{split}" for name, split in zip(names, ("train", "val", "test"), strict=True)]
    (tmp_path / "texts.csv").write_text("\n".join(["path,text,split", *lines, "broken.mp4,a sentence,train"]))
    tree = yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))
    tree["corpora"]["mine"] = {"adapter": "folder", "role": "finetuning", "annotations": ".", "media": "media"}
    tree["retrieval"]["inference_frames"] = 1
    tree["clips"] |= {"frames": 1, "size": 40, "workers": 1, "max_reject_fraction": 0.5}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_corpus_becomes_a_manifest_and_clips(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_corpus_manifest("mine")
    assert capsys.readouterr().out == "mine: 4 accepted, 0 rejected\n"
    ingest_corpus("mine")
    counts, reject = capsys.readouterr().out.splitlines()
    assert counts == "mine: 3 accepted, 1 rejected (corrupt 1)"
    assert reject.startswith("  broken.mp4: corrupt, ")
    clips = project / "data" / "clips" / "finetuning" / "mine"
    rows = {path.stem: lance.dataset(str(path)).count_rows() for path in clips.glob("*.lance")}
    assert rows == {"train": 1, "val": 1, "test": 1}


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("stage", [write_corpus_manifest, ingest_corpus])
def test_an_unknown_corpus_is_an_error_that_lists_those_there_are(stage) -> None:
    with pytest.raises(
        ValueError, match="no corpus 'yours'; it has mine, stampscenes-captions, stampscenes-pretraining"
    ):
        stage("yours")
