"""params.yaml: the repository's own loads, and every mistake is a ValueError that names file and key."""

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from clip4vla.params import Params, load_params
from tests.project import REPOSITORY

FILE = REPOSITORY / "params.yaml"
TREE: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
FREE = {
    *(("corpora",), ("stampscenes", "caption_pairs"), ("stampscenes", "pictures_per_pair")),
    *(("gate", "floors"), ("caption_gate", "floors")),
}
"""Sections whose keys are names of things."""


def sections(tree: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Paths of all sections whose keys are declared."""
    if path not in FREE:
        yield path
    for key, value in tree.items():
        if isinstance(value, dict) and key != "presets":
            yield from sections(value, (*path, key))


SECTIONS = list(sections(TREE))


def at(tree: dict[str, Any], path: tuple[str, ...]) -> dict[str, Any]:
    for key in path:
        tree = tree[key]
    return tree


@pytest.fixture
def changed(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    """Write params.yaml with a change."""

    def write(change: Callable[[dict[str, Any]], object]) -> Path:
        tree = copy.deepcopy(TREE)
        change(tree)
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
        return path

    return write


def test_the_repository_s_own_file_loads() -> None:
    params = load_params(FILE)
    assert params.seed == TREE["seed"]
    assert params.corpora.keys() == TREE["corpora"].keys()
    assert params.finetune.optimizer.lr == TREE["finetune"]["optimizer"]["lr"]


def test_it_is_read_whole_and_written_back_the_same() -> None:
    params = load_params(FILE)
    assert Params.model_validate(params.model_dump(mode="json")) == params


@settings(deadline=None, max_examples=50)
@given(section=st.sampled_from(SECTIONS), key=st.text("abcdefghijklmnop_", min_size=1, max_size=12))
def test_an_unknown_key_anywhere_is_named(tmp_path_factory: pytest.TempPathFactory, section: Any, key: str) -> None:
    tree = copy.deepcopy(TREE)
    unknown = f"{key}_zz"
    at(tree, section)[unknown] = 1
    path = tmp_path_factory.mktemp("unknown") / "params.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(".".join((*section, unknown)))) as caught:
        load_params(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("section", SECTIONS, ids=".".join)
def test_every_missing_key_is_named(changed: Callable[..., Path], section: tuple[str, ...]) -> None:
    fields = at(TREE, section)
    for key in fields:
        path = changed(lambda tree, key=key: at(tree, section).pop(key))
        with pytest.raises(ValueError, match=re.escape(".".join((*section, key)) + ": Field required")) as caught:
            load_params(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pretrain.batch_size", 0),
        ("pretrain.optimizer.lr", 0.0),
        ("pretrain.optimizer.warmup", 1.5),
        ("pretrain.text_audio", -1.0),
        ("finetune.words", 3),
        ("trainer.zero_stage", 4),
        ("trainer.precision", "fp16"),
        ("model.fusion", "max"),
        ("audio.recipe", "loud"),
        ("clips.jpeg_quality", 101),
        ("clips.max_reject_fraction", 1.01),
        ("stampscenes.language", "en"),
        ("stampscenes.size", 97),
        ("evaluate.bootstrap", 10),
    ],
)
def test_a_value_out_of_range_is_named(changed: Callable[..., Path], key: str, value: object) -> None:
    *section, name = key.split(".")
    path = changed(lambda tree: at(tree, tuple(section)).update({name: value}))
    with pytest.raises(ValueError, match=rf"params\.yaml is not right:\n  {re.escape(key)}: "):
        load_params(path)


def test_every_mistake_is_told_at_once(changed: Callable[..., Path]) -> None:
    path = changed(lambda tree: (tree.pop("seed"), tree["model"].update(fusion="max"), tree.update(extra=1)))
    with pytest.raises(ValueError, match=r"seed: (.|\n)*model\.fusion: (.|\n)*extra: "):
        load_params(path)


@pytest.mark.parametrize("name", TREE["presets"])
def test_a_preset_lies_over_the_sections_and_leaves_the_rest(changed: Callable[..., Path], name: str) -> None:
    size = {"frames": 12, "size": 256, "max_seconds": 30.0}
    before = load_params(changed(lambda tree: tree["clips"].update(size))).model_dump(mode="json")
    after = load_params(changed(lambda tree: (tree["clips"].update(size), tree.update(preset=name)))).model_dump(
        mode="json"
    )
    for section, changes in TREE["presets"][name].items():
        optimizer = changes.get("optimizer", {})
        flat = {key: value for key, value in changes.items() if key != "optimizer"}
        assert flat.items() <= after[section].items()
        assert optimizer.items() <= after[section].get("optimizer", {}).items()
        untouched = before[section].keys() - changes.keys()
        assert all(after[section][key] == before[section][key] for key in untouched)
    untouched = before.keys() - TREE["presets"][name].keys() - {"preset"}
    again = Params.model_validate(after).model_dump(mode="json")
    assert all(again[section] == before[section] for section in untouched)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretrain": {"text_smell": 1.0}}, r"presets\.mine\.pretrain\.text_smell: "),
        ({"finetune": {"optimizer": {"lr": 0}}}, r"presets\.mine\.finetune\.optimizer\.lr: "),
        ({"clips": {"size": 128}}, r"presets\.mine\.clips"),
    ],
)
def test_a_mistake_in_a_preset_that_is_not_chosen_is_named(
    changed: Callable[..., Path], changes: dict[str, Any], message: str
) -> None:
    path = changed(lambda tree: tree["presets"].update(mine=changes))
    with pytest.raises(ValueError, match=message):
        load_params(path)


def test_a_preset_that_is_not_there_is_named(changed: Callable[..., Path]) -> None:
    path = changed(lambda tree: tree.update(preset="paper-tiktok"))
    with pytest.raises(ValueError, match="preset: 'paper-tiktok' is none of default, paper"):
        load_params(path)


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        ("finetune", "text_cross", r"finetune\.text_cross is 1, but model\.fusion is 'mean'"),
        ("evaluate", "rerank", r"evaluate\.rerank is 1, but finetune\.text_cross is 0, so nothing teaches the score"),
    ],
)
def test_a_second_opinion_that_nothing_teaches_is_refused(
    changed: Callable[..., Path], section: str, key: str, message: str
) -> None:
    path = changed(lambda tree: tree[section].update({key: 1}))
    with pytest.raises(ValueError, match=message):
        load_params(path)


def test_more_frames_than_are_stored_are_refused(changed: Callable[..., Path]) -> None:
    path = changed(lambda tree: tree["finetune"].update(frames=12))
    with pytest.raises(ValueError, match=r"finetune\.frames is 12, but clips\.frames, those stored, is 4"):
        load_params(path)


@pytest.mark.parametrize("role", ["pretrain", "finetune"])
def test_a_role_that_no_corpus_has_is_named(changed: Callable[..., Path], role: str) -> None:
    other = {"pretrain": "finetune", "finetune": "pretrain"}[role]
    path = changed(lambda tree: [corpus.update(role=other) for corpus in tree["corpora"].values()])
    with pytest.raises(ValueError, match=rf"none has the role {role}"):
        load_params(path)


@pytest.mark.parametrize("text", ["seed: [1, 2", "a: b: c", "\t- x"])
def test_what_is_no_yaml_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"(?s){re.escape(str(path))} is not valid YAML: .*line [12]"):
        load_params(path)


@pytest.mark.parametrize("text", ["", "- 1", "seed"])
def test_yaml_that_is_no_mapping_is_said(tmp_path: Path, text: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{re.escape(str(path))} is not right:\n  \(top\): "):
        load_params(path)


def test_a_missing_file_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_params_are_frozen() -> None:
    params = load_params(FILE)
    with pytest.raises(ValidationError, match="frozen"):
        params.pretrain.epochs = 5
