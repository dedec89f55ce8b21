"""Atomic files and directories: the old content or the new one, never a part."""

import json
import os
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from clip4vla.utils.files import atomic_directory, atomic_file, read_json, write_json


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what was synced and renamed, in order."""
    noted: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        noted.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        noted.append(f"rename {self.name}")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    return noted


def test_others_may_read_what_a_library_wrote_for_its_user_only(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    with atomic_file(tmp_path / "weights") as partial:
        partial.unlink()
        os.close(os.open(partial, os.O_CREAT | os.O_WRONLY, 0o600))
    assert (tmp_path / "weights").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_file_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, calls: list[str]) -> None:
    path = tmp_path / "new" / "a.txt"
    with atomic_file(path) as partial:
        partial.write_text("old")
        assert not path.exists()
    with atomic_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]
    assert calls == 2 * ["sync .a.txt.partial", "rename .a.txt.partial", "sync new"]


def test_a_directory_is_on_the_disk_before_it_takes_its_place(tmp_path: Path, calls: list[str]) -> None:
    path = tmp_path / "data"
    path.mkdir()
    (path / "old").touch()
    (tmp_path / ".data.partial").mkdir()
    (tmp_path / ".data.partial/of-a-killed-process").touch()
    with atomic_directory(path) as partial:
        (partial / "inner").mkdir()
        (partial / "inner/b").write_text("b")
        (partial / "dangling").symlink_to("nowhere")
        assert (path / "old").exists()
    assert sorted(found.name for found in path.rglob("*")) == ["b", "dangling", "inner"]
    assert list(tmp_path.iterdir()) == [path]
    assert sorted(calls[:-2]) == ["sync .data.partial", "sync b", "sync inner"]
    assert calls[-2:] == ["rename .data.partial", f"sync {tmp_path.name}"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_block_that_fails_changes_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "directory").mkdir()

    def write_half(opened: AbstractContextManager[Path], name: str) -> None:
        with opened as partial:
            (partial / name).write_text("half")
            raise error

    with pytest.raises(error):
        write_half(atomic_file(tmp_path / "file"), "")
    with pytest.raises(error):
        write_half(atomic_directory(tmp_path / "directory"), "half")
    assert sorted(found.name for found in tmp_path.rglob("*")) == ["directory", "file"]
    assert (tmp_path / "file").read_text() == "old"


def test_json_is_indented_utf_8(tmp_path: Path) -> None:
    tree = {"name": "Tür", "values": [1, 0.1, None, True]}
    write_json(tmp_path / "a.json", tree)
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == tree
    assert text.splitlines()[1] == '  "name": "Tür",'
    assert text.endswith("}\n")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"metrics": {"loss": [0.5, float("nan")]}}, r"metrics\.loss\[1\] is nan, which JSON cannot hold"),
        ([{"a": 1.0}, (float("inf"),)], r"\[1\]\[0\] is inf"),
        (float("-inf"), "the value is -inf"),
    ],
)
def test_a_number_that_json_cannot_hold_is_named_with_file_and_place(
    tmp_path: Path, tree: object, message: str
) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(ValueError, match=rf"a\.json: {message}"):
        write_json(path, tree)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "-1e400"])
def test_a_number_that_is_not_finite_is_not_read(tmp_path: Path, number: str) -> None:
    (tmp_path / "a.json").write_text(f'{{"loss": {number}}}')
    with pytest.raises(ValueError, match=rf"a.json can't be read: it has the number {number}, which isn't finite"):
        read_json(tmp_path / "a.json")


def test_json_without_end_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep.json can't be read: "):
        read_json(tmp_path / "deep.json")
