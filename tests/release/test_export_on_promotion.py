"""A promotion exports the version where `export_on_promotion` says so, with the corpora that params.yaml describes."""

import json
from pathlib import Path

import pytest

import clip4vla
from clip4vla.corpora.stampscenes.fetch import PACKAGE_FILE, STAMPS
from clip4vla.model.pretrained import save_model
from clip4vla.pipeline.project import EVALUATIONS, RUNS
from clip4vla.pipeline.promote import promote
from clip4vla.tracking.run import start_run
from tests.inference.tiny import INFERENCE, tiny_model
from tests.project import REPOSITORY
from tests.release.conftest import scores

FLOOR = "floors: {text_to_clip/both/R@1: 60.0}"


@pytest.mark.parametrize(("floor", "is_promoted"), [(40, True), (60, False)])
def test_only_a_promoted_version_is_exported(floor: int, is_promoted: bool, root: Path) -> None:
    params = (REPOSITORY / "params.yaml").read_text()
    assert FLOOR in params
    changed = f"floors: {{text_to_clip/both/R@1: {floor}}}, export_on_promotion: exports"
    Path("params.yaml").write_text(params.replace(FLOOR, changed))
    STAMPS.destination.mkdir(parents=True)
    (STAMPS.destination / PACKAGE_FILE).write_text(json.dumps({"version": "2022.06.04-1"}))
    save_model(tiny_model(), RUNS / "retrieval", INFERENCE)
    with start_run(root, "retrieval", "retrieval") as run:
        pass
    (RUNS / "retrieval/run.json").write_text(json.dumps({"run_id": run.run_id}))
    scores().write(EVALUATIONS / "retrieval")
    promote("retrieval")
    folder = Path("exports/clip4vla-1")
    assert folder.is_dir() is is_promoted
    if is_promoted:
        assert clip4vla.load(folder).encode_text(["a bell"]).shape == (1, 64)
        row = "| stampscenes-captions | finetuning | 2022.06.04-1 | GPL-2.0 | Debian package tuxpaint-stamps-default |"
        assert row in (folder / "README.md").read_text()
