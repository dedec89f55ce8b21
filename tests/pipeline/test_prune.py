"""What `clip4vla prune` finds and removes, in a project with git, DVC, a registry and checkpoints."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clip4vla.__main__ import main
from clip4vla.pipeline.prune import prune
from clip4vla.registry.registry import OldVersion, Registry
from tests.project import REPOSITORY

OLD, NEW, RUNNING = "0" * 16, "1" * 16, "2" * 16


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data of the last commit of `main`, of the one before it, of the branch `other`, and of none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    git("init", "-q", "-b", "main")
    dvc("init", "-q")
    for branch, content in (("main", "before"), ("main", "last of main"), ("other", "last of other")):
        git("checkout", "-q", "-B", branch)
        (tmp_path / "data.bin").write_text(content)
        dvc("add", "-q", "data.bin")
        git("add", ".")
        git("-c", "user.name=a", "-c", "user.email=a@example.org", "commit", "-q", "-m", content)
    git("checkout", "-q", "main")
    (tmp_path / "data.bin").unlink()
    (tmp_path / "data.bin").write_text("not committed yet")
    dvc("add", "-q", "data.bin")
    for method in ("old_versions", "remove_old_versions"):
        monkeypatch.setattr(Registry, method, lambda _, name, keep: [OldVersion(name, str(keep), 2_000_000)])
    return tmp_path


def run(*arguments: str) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        main(arguments)


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True, capture_output=True)


def dvc(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)


def contents(project: Path) -> set[str]:
    return {path.read_text() for path in (project / ".dvc/cache/files").rglob("*") if path.is_file()}


def write_checkpoint(directory: Path, age_s: float) -> None:
    """A checkpoint whose files were last changed `age_s` seconds before the others'."""
    file = directory / "step000000010/weights.bin"
    file.parent.mkdir(parents=True)
    file.write_bytes(bytes(1000))
    for path in (file, file.parent, directory):
        os.utime(path, (2_000_000_000 - age_s,) * 2)


def test_what_is_unused_is_found_first_and_then_removed(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoints = project / "checkpoints"
    for place, age_s in {
        f"retrieval/{OLD}": 10, f"retrieval/{NEW}": 0, f"ablation/mean/{RUNNING}": 99,
        f"finished/captioning/{OLD}": 5, f"finished/captioning/{NEW}": 4,
    }.items():  # fmt: skip
        write_checkpoint(checkpoints / place, age_s)
    everything = {path for path in project.rglob("*") if ".git" not in path.parts}
    run("prune", "--keep", "3")
    assert capfd.readouterr().out.splitlines() == [
        "clip4vla version 3: 2.0 MB",
        "clip4vla-captioning version 3: 2.0 MB",
        f"finished training captioning/{OLD}: 1.0 kB",
        f"checkpoints of retrieval/{OLD}: 1.0 kB",
        "unused files of DVC's cache (1): 6 B",
        "4.0 MB could be removed: `clip4vla prune --keep 3 --yes`",
    ]
    assert everything <= set(project.rglob("*")), "nothing was removed"
    run("prune", "--keep", "3", "--yes")
    assert capfd.readouterr().out.splitlines()[-1] == "4.0 MB removed"
    assert contents(project) == {"last of main", "last of other", "not committed yet"}
    kept = {str(path.relative_to(checkpoints)) for path in checkpoints.rglob("*") if path.name in (OLD, NEW, RUNNING)}
    assert kept == {f"retrieval/{NEW}", f"ablation/mean/{RUNNING}", f"finished/captioning/{NEW}"}
    assert [removal for removal in prune(3, carry_out=True) if "version" not in removal.what] == []


def test_a_link_that_leads_nowhere_and_a_file_that_vanishes_meanwhile_do_not_matter(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, age_s in ((OLD, 2), (NEW, 1)):
        write_checkpoint(project / "checkpoints/retrieval" / place, age_s)
    (project / "checkpoints/retrieval" / OLD / "latest").symlink_to("nowhere")
    walk = os.walk

    def as_before(top: Path, **options: Any) -> Iterator[tuple[Any, list[str], list[str]]]:
        yield from ((folder, folders, [*files, "vanished"]) for folder, folders, files in walk(top, **options))

    monkeypatch.setattr("clip4vla.pipeline.prune.os.walk", as_before)
    found = [removal for removal in prune(3, carry_out=False) if removal.what.startswith("checkpoints")]
    assert [(removal.what, removal.size) for removal in found] == [(f"checkpoints of retrieval/{OLD}", 1000)]


def test_a_project_without_checkpoints_and_commits_has_nothing_to_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    git("init", "-q")
    dvc("init", "-q")
    monkeypatch.setattr(Registry, "old_versions", lambda *_: [])
    assert list(prune(10, carry_out=False)) == []


def test_a_project_without_dvc_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    monkeypatch.setattr(Registry, "old_versions", lambda *_: [OldVersion("clip4vla", "1", 7)])
    with pytest.raises(SystemExit, match=r"^clip4vla: `dvc gc .*` failed: .*not inside of a DVC repository"):
        main(["prune"])
    assert "clip4vla version 1: 7 B" in capsys.readouterr().out, "what was found before is said"
