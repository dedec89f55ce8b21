"""The graph of dvc.yaml as flows walk it."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flows.graph import Graph, parse_graph, read_graph
from tests.project import REPOSITORY

DOT = """strict digraph {
"fetch";
"corpus";
"clips@a-1";
"clips@b";
"pretrain";
"lonely";
"fetch" -> "corpus";
"corpus" -> "clips@a-1";
"corpus" -> "clips@b";
"clips@a-1" -> "pretrain";
}
"""


def test_stages_come_after_those_that_they_depend_on() -> None:
    graph = parse_graph(DOT)
    assert set(graph.order) == {"fetch", "corpus", "clips@a-1", "clips@b", "pretrain", "lonely"}
    assert graph.parents["pretrain"] == {"clips@a-1"}
    assert graph.upstream("pretrain") == ("fetch", "corpus", "clips@a-1", "pretrain")
    assert set(graph.matching("clips")) == {"clips@a-1", "clips@b"}


def test_an_unknown_stage_is_named() -> None:
    with pytest.raises(ValueError, match=r"dvc\.yaml has no stage 'smell'; it has .*fetch"):
        parse_graph(DOT).upstream("smell")


@given(st.dictionaries(st.integers(0, 12), st.sets(st.integers(0, 12), max_size=4), max_size=12))
def test_the_order_of_any_graph_respects_its_edges(edges: dict[int, set[int]]) -> None:
    parents = {str(after): frozenset(str(before) for before in befores if before < after) for after, befores in
               edges.items()}  # fmt: skip
    graph = Graph({**{name: frozenset() for befores in parents.values() for name in befores}, **parents})
    place = {stage: index for index, stage in enumerate(graph.order)}
    assert all(place[before] < place[after] for after, befores in graph.parents.items() for before in befores)


def test_the_project_s_own_graph_ends_with_the_promotions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    graph = read_graph()
    assert set(graph.upstream("promote@retrieval")) >= {"pretrain", "finetune@retrieval", "evaluate@retrieval"}
    assert "evaluate@captioning" not in graph.upstream("promote@retrieval")


def test_a_graph_that_dvc_cannot_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="`dvc dag` failed: "):
        read_graph()


def test_every_command_of_the_graph_is_a_step_of_the_command_line() -> None:
    stages = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        command = stage.get("do", stage)["cmd"]
        assert re.fullmatch(rf'clip4vla {name}( \$\{{item\}}| "\$DVC_STAGE")?', command)
