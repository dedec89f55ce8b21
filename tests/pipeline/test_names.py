"""Names in params.yaml that only other parts know are refused before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from clip4vla.__main__ import main
from clip4vla.config import load_config
from clip4vla.corpora.base import ADAPTERS
from clip4vla.pipeline.names import check_names
from tests.project import REPOSITORY, read_config, write_config

QUERY = {"query": "a bell", "kind": "loud", "phrasing": "trained", "clips": ["one"]}


def wrong(directory: Path, gates: dict[str, Any], **sections: Any) -> list[str]:
    """The lines about params.yaml with these changes of gates, by task, and of other sections."""
    tree = read_config(REPOSITORY)
    for task, values in gates.items():
        tree["gates"][task] |= values
    for section, values in sections.items():
        tree[section] |= values
    write_config(directory, tree)
    try:
        check_names(load_config(directory / "params.yaml"), directory)
    except ValueError as error:
        first, *lines = str(error).splitlines()
        assert first == "params.yaml with its presets is not valid:"
        return lines
    return []


PRESETS = {path.stem for path in (REPOSITORY / "presets").glob("*.yaml")}
BASE = "own-captions"
"""Has no corpora of its own."""


@pytest.mark.parametrize("preset", sorted(PRESETS - {BASE}))
def test_every_preset_names_what_is_there(preset: str) -> None:
    check_names(load_config(REPOSITORY / "params.yaml", preset))


@pytest.mark.parametrize(
    ("gates", "line"),
    [
        (
            {"retrieval": {"primary": "text_to_clip/bth/R@1"}},
            "  gates.retrieval.primary: there is no score 'text_to_clip/bth/R@1' of retrieval with these settings; "
            "near it are text_to_clip/both/R@1, ",
        ),
        (
            {"retrieval": {"floors": {"by_query/sen/both/R@1": 1.0}}},
            "  gates.retrieval.floors.by_query/sen/both/R@1: there is no score 'by_query/sen/both/R@1' of retrieval "
            "with these settings; near it are by_query/seen/both/R@1, ",
        ),
        (
            {"captioning": {"guards": [{"score": "caption/both/CIDER", "tolerance": 1}]}},
            "  gates.captioning.guards.0.score: there is no score 'caption/both/CIDER' of captioning with these "
            "settings; near it are caption/both/CIDEr, ",
        ),
        (
            {"captioning": {"primary": "caption/both/BLEU-4"}},
            "  gates.captioning.primary: 'caption/both/BLEU-4' has no results of each query or clip",
        ),
        (
            {"captioning": {"never_worse_than_best_modality": 1.0}},
            "  gates.captioning.never_worse_than_best_modality: there are no scores by kind of query",
        ),
        ({"captioning": {"primary": "text_to_clip/both/R@1"}}, "  gates.captioning.primary: there is no score"),
    ],
    ids=["primary", "floor", "guard", "unpaired", "no kinds", "other task"],
)
def test_a_gate_names_scores_that_there_will_be(tmp_path: Path, gates: dict[str, Any], line: str) -> None:
    [found] = wrong(tmp_path, gates)
    assert found.startswith(line)


def test_scores_by_query_and_of_labels_take_their_files(tmp_path: Path) -> None:
    names = [
        "by_query/seen/both/R@1",
        "held_out/said/audio/MdR",
        "probe/verbal/speech/R@1",
        "by_query/all/weight/verbal",
    ]
    guards = {"retrieval": {"guards": [{"score": name, "tolerance": 1} for name in names]}}
    assert wrong(tmp_path, guards) == []
    without = {"retrieval": guards["retrieval"] | {"never_worse_than_best_modality": None}}
    lines = wrong(tmp_path, without, evaluation={"labels": None, "queries": None})
    assert [line.split(":")[0] for line in lines] == [f"  gates.retrieval.guards.{n}.score" for n in range(len(names))]
    assert len(wrong(tmp_path, {"retrieval": {}}, evaluation={"queries": None})) == 1


def test_kinds_and_roles_of_own_files_are_known_where_the_files_are_there(tmp_path: Path) -> None:
    gates = {
        "retrieval": {"primary": "by_query/loud/both/R@1"},
        "captioning": {"primary": "caption/both/slot/horn"},
    }
    own = {"evaluation": {"labels": "labels.json", "queries": "queries.json"}}
    assert wrong(tmp_path, gates, **own) == []
    (tmp_path / "queries.json").write_text(json.dumps({"test": [QUERY]}))
    (tmp_path / "labels.json").write_text(json.dumps({"sound": [], "speech": [], "clips": {"one": {"horn": "a horn"}}}))
    assert wrong(tmp_path, gates, **own) == []
    (tmp_path / "queries.json").write_text(json.dumps({"test": [QUERY | {"phrasing": "held_out"}]}))
    (tmp_path / "labels.json").write_text(json.dumps({"sound": [], "speech": [], "clips": {}}))
    assert [line.split(":")[0] for line in wrong(tmp_path, gates, **own)] == [
        "  gates.retrieval.primary",
        "  gates.retrieval.never_worse_than_best_modality",
        "  gates.captioning.primary",
    ]


def test_an_adapter_is_one_that_there_is(tmp_path: Path) -> None:
    corpora = read_config(REPOSITORY)["corpora"]
    corpora["stampscenes-captions"]["adapter"] = "mrsvtt"
    [line] = wrong(tmp_path, {}, corpora=corpora)
    known = ", ".join(sorted(ADAPTERS))
    assert line == f"  corpora.stampscenes-captions.adapter: there is no corpus adapter 'mrsvtt'; there are {known}"


@pytest.mark.parametrize("command", ["params", "doctor"])
def test_commands_that_run_first_refuse_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.chdir(tmp_path)
    wrong(tmp_path, {"retrieval": {"primary": "text_to_clip/both/R@2"}})
    with pytest.raises(SystemExit, match=r"^clip4vla: params\.yaml with its presets .*\n  gates\.retrieval\.primary: "):
        main([command])
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]
