"""Queries by kind: read from a file, ranked with all their right clips, and held-out phrasings apart."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip4vla.corpora.stampscenes.queries import KINDS
from clip4vla.evaluation.queries import NO_QUERIES, Query, QuerySet
from clip4vla.evaluation.retrieval_metrics import retrieval_intervals
from clip4vla.evaluation.scores import QUERY_KINDS, Scores, is_headline, summarise

CLIPS = ("bat", "cow", "dog", "elk")
BAT = {"query": "a bat is heard", "kind": "heard", "phrasing": "trained", "clips": ["bat"]}


def query(kind: str, clips: str, phrasing: str = "trained") -> Query:
    return Query(query=f"{kind} {clips}", kind=kind, phrasing=phrasing, clips=tuple(clips.split()))


QUERIES = QuerySet(
    (
        query("heard", "bat cow"),
        query("seen", "dog"),
        query("heard", "elk"),
        query("heard", "cow bat"),
        query("heard", "dog", "held_out"),
    )
)
SIMILARITY = np.array(
    [
        [0.1, 0.8, 0.9, 0.2],  # a right one is second
        [0.9, 0.1, 0.5, 0.6],  # the right one is third
        [0.1, 0.2, 0.3, 0.9],  # first
        [0.9, 0.3, 0.2, 0.1],  # first
        [0.1, 0.9, 0.8, 0.7],  # second
    ],
    dtype=np.float32,
)


def write(path: Path, tree: Any) -> Path:
    path.write_text(tree if isinstance(tree, str) else json.dumps(tree), encoding="utf-8")
    return path


def test_the_queries_of_a_split_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "queries.json", {"val": [], "test": [BAT, BAT | {"query": "one can hear a bat"}]})
    found = QuerySet.read(path, "test")
    assert found.sentences == ["a bat is heard", "one can hear a bat"]
    assert found.queries[0] == Query(**BAT)
    assert found.digest != QuerySet(found.queries[:1]).digest


@pytest.mark.parametrize("tree", [{}, {"test": []}, {"val": [BAT]}])
def test_a_split_may_have_no_queries(tmp_path: Path, tree: dict[str, Any]) -> None:
    assert not QuerySet.read(write(tmp_path / "queries.json", tree), "test")


@pytest.mark.parametrize(
    "content",
    [
        *(None, "{", "[]", {"test": "a bat"}, {"test": [{"query": "a bat"}]}),
        {"test": [BAT | {"phrasing": "new"}]},
        {"test": [BAT | {"clips": []}]},
        {"test": [BAT | {"kind": "heard/loud"}]},
        {"test": [BAT | {"weight": 1}]},
    ],
)
def test_a_file_that_has_no_queries_is_named(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "queries.json"
    if content is not None:
        write(path, content)
    with pytest.raises(ValueError, match=r"queries\.json, named by evaluation\.queries, is not a queries file: "):
        QuerySet.read(path, "test")


def test_the_best_of_several_right_clips_counts_and_held_out_phrasings_are_apart() -> None:
    tables = QUERIES.tables({"video": -SIMILARITY, "both": SIMILARITY}, CLIPS)
    assert {name: table.ranks.rank.tolist() for name, table in tables.items()} == {
        "by_query/heard/video": [1.0, 4.0, 3.0],
        "by_query/heard/both": [2.0, 1.0, 1.0],
        "by_query/seen/video": [2.0],
        "by_query/seen/both": [3.0],
        "held_out/heard/video": [3.0],
        "held_out/heard/both": [2.0],
    }


def test_a_query_has_the_same_id_by_every_modality() -> None:
    tables = QUERIES.tables({"video": -SIMILARITY, "both": SIMILARITY}, CLIPS)
    assert tables["by_query/heard/video"].query_ids == tables["by_query/heard/both"].query_ids
    ids = [name for group, table in tables.items() if group.endswith("both") for name in table.query_ids]
    assert len(set(ids)) == len(ids) == len(QUERIES)


def test_queries_about_the_same_clips_are_resampled_together() -> None:
    table = QUERIES.tables({"both": SIMILARITY}, CLIPS)["by_query/heard/both"]
    first, second, third = table.clip_ids
    assert first == third != second
    found = retrieval_intervals(table.ranks, table.clip_ids, 200, 0)["R@1"]
    assert found == retrieval_intervals(table.ranks, ("a", "b", "a"), 200, 0)["R@1"]


def test_queries_are_about_unseen_clips_where_all_their_right_clips_are() -> None:
    assert QUERIES.groups_about(CLIPS, "unseen/voices") == {
        "unseen/voices/heard": [0, 2, 3],
        "unseen/voices/seen": [1],
    }
    assert QUERIES.groups_about({"bat", "elk"}, "unseen/voices") == {"unseen/voices/heard": [2]}
    assert QUERIES.groups_about((), "unseen/voices") == {}
    tables = QUERIES.tables({"both": SIMILARITY}, CLIPS, QUERIES.groups_about({"dog", "elk"}, "unseen/voices"))
    assert {name: table.ranks.rank.tolist() for name, table in tables.items()} == {
        "unseen/voices/heard/both": [1.0],
        "unseen/voices/seen/both": [3.0],
    }


def test_a_query_about_an_unknown_clip_is_refused() -> None:
    with pytest.raises(ValueError, match="queries name 2 clips that the split does not have, such as bat"):
        QUERIES.tables({"both": SIMILARITY[:, 2:]}, CLIPS[2:])


def test_mean_weights_are_those_of_the_queries_of_a_kind() -> None:
    weights = np.array([[0.2, 0.8], [0.9, 0.1], [0.4, 0.6], [0.6, 0.4], [0.0, 1.0]], dtype=np.float32)
    assert QUERIES.mean_weights(weights, ("video", "nonverbal")) == pytest.approx(
        {
            "by_query/heard/weight/video": 0.4,
            "by_query/heard/weight/nonverbal": 0.6,
            "by_query/seen/weight/video": 0.9,
            "by_query/seen/weight/nonverbal": 0.1,
            "held_out/heard/weight/video": 0.0,
            "held_out/heard/weight/nonverbal": 1.0,
        }
    )


def test_without_queries_there_are_no_tables_and_no_weights() -> None:
    assert NO_QUERIES.tables({"both": np.zeros((0, 4), np.float32)}, CLIPS) == {}
    assert NO_QUERIES.mean_weights(np.zeros((0, 2), np.float32), ("video", "nonverbal")) == {}


def scored(kinds: tuple[str, ...], held_out: tuple[str, ...] = ()) -> Scores:
    """Every kind with one query, answered by both modalities."""
    found = [query(kind, "bat") for kind in kinds] + [query(kind, "cow", "held_out") for kind in held_out]
    queries = QuerySet(tuple(found))
    similarity = np.tile(np.array([0.9, 0.8, 0.1, 0.2], np.float32), (len(queries), 1))
    tables = queries.tables({"video": -similarity, "audio": similarity, "both": similarity}, CLIPS)
    weights = np.tile(np.array([0.75, 0.25], np.float32), (len(queries), 1))
    return summarise("abc", tables, 100, 0, queries.mean_weights(weights, ("video", "verbal")))


def test_the_tree_has_recalls_intervals_and_mean_weights_by_kind() -> None:
    tree = scored(("seen", "said"), ("said",)).tree()
    assert tree.keys() == {"by_query", "held_out"}
    assert tree["by_query"].keys() == {"seen", "said"}
    said = tree["by_query"]["said"]
    assert said.keys() == {"video", "audio", "both", "weight"}
    assert said["weight"] == {"video": 0.75, "verbal": 0.25}
    for modality, recall in (("video", 0.0), ("audio", 100.0), ("both", 100.0)):
        assert said[modality]["R@1"] == recall
        assert said[modality]["ci95"]["R@1"] == [recall, recall]
    assert tree["held_out"]["said"]["both"]["R@1"] == 0.0
    assert json.loads(json.dumps(tree)) == tree


def test_scores_by_kind_survive_the_disk(tmp_path: Path) -> None:
    scores = scored(("seen", "said"), ("said",))
    scores.write(tmp_path)
    assert Scores.read(tmp_path).tree() == scores.tree()


def test_kinds_are_in_the_order_of_tables_and_those_of_other_corpora_follow() -> None:
    scores = scored(("weather", "unrelated_sound", "said", "mood", "all", "heard"), ("mood", "two"))
    assert scores.query_kinds() == ("all", "heard", "said", "unrelated_sound", "mood", "weather")
    assert scores.query_kinds("held_out") == ("two", "mood")
    assert Scores("abc", {}).query_kinds() == ()
    assert set(KINDS) == set(QUERY_KINDS)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("text_to_clip/both/R@1", True),
        ("clip_to_text/audio/R@1", True),
        ("text_to_clip/both/R@5", False),
        ("probe/verbal/speech/R@1", True),
        ("by_query/seen/both/R@1", True),
        ("by_query/seen/video/R@1", False),
        ("by_query/seen/weight/video", False),
        ("held_out/seen/both/R@1", False),
        ("unseen/voices/said/both/R@1", True),
        ("original/voices/said/both/R@1", False),
        ("caption/both/CIDEr", False),
    ],
)
def test_models_are_compared_by_both_modalities_and_trained_phrasings(name: str, is_one: bool) -> None:
    assert is_headline(name) is is_one
