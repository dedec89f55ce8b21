"""Scores survive the disk, and nothing that is missing, mixed up or malformed is read as scores."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clip4vla.evaluation.retrieval_metrics import QueryRanks, correspondence, ranks, retrieval_scores
from clip4vla.evaluation.scores import (
    RANKS_FILE,
    SAMPLES_FILE,
    SCORES_FILE,
    QueryTable,
    Samples,
    Scores,
    fingerprint,
    lower_is_better,
    summarise,
    summarise_samples,
)


def table(queries: int = 12, seed: int = 0) -> QueryTable:
    clips = [f"clip{index}" for index in range(queries // 2)]
    owners = [clips[index // 2] for index in range(queries)]
    similarity = np.random.default_rng(seed).standard_normal((queries, len(clips)))
    found = ranks(similarity, correspondence(owners, clips))
    return QueryTable(tuple(f"{owner}#{index % 2}" for index, owner in enumerate(owners)), tuple(owners), found)


@pytest.fixture
def scores() -> Scores:
    queries = {"text_to_clip/both": table(), "clip_to_text/video": table(seed=1)}
    return summarise(
        "abc", queries, 100, 0, {"probe/nonverbal/sound/R@1": 66.0}, {"probe/nonverbal/sound/R@1": (60.0, 70.0)}
    )


def same(one: Scores, other: Scores) -> bool:
    tables = one.queries.keys() == other.queries.keys() and all(
        one.queries[name].query_ids == other.queries[name].query_ids
        and one.queries[name].clip_ids == other.queries[name].clip_ids
        and np.array_equal(one.queries[name].ranks.rank, other.queries[name].ranks.rank)
        and np.array_equal(one.queries[name].ranks.hits, other.queries[name].ranks.hits)
        for name in one.queries
    )
    heads = (one.test_set, one.values, one.intervals) == (other.test_set, other.values, other.intervals)
    return heads and tables


def test_what_is_written_is_read(scores: Scores, tmp_path: Path) -> None:
    scores.write(tmp_path / "new" / "folder")
    assert same(Scores.read(tmp_path / "new" / "folder"), scores)
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == [RANKS_FILE, SCORES_FILE]


def test_writing_twice_gives_the_same_bytes(scores: Scores, tmp_path: Path) -> None:
    for name in ("one", "two"):
        scores.write(tmp_path / name)
    for file in (RANKS_FILE, SCORES_FILE):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_scores_without_queries_survive(tmp_path: Path) -> None:
    scores = Scores("abc", {"probe/verbal/speech/R@1": 1.0})
    scores.write(tmp_path)
    assert same(Scores.read(tmp_path), scores)


def test_summary_names_direction_modality_and_metric(scores: Scores) -> None:
    for name, value in retrieval_scores(table().ranks).items():
        assert scores.values[f"text_to_clip/both/{name}"] == value
        low, high = scores.intervals[f"text_to_clip/both/{name}"]
        assert low <= value <= high
    assert len(scores.values) == 11


@pytest.mark.parametrize("file", [SCORES_FILE, RANKS_FILE])
def test_a_missing_file_is_named(scores: Scores, tmp_path: Path, file: str) -> None:
    scores.write(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(ValueError, match=rf"{file} is missing"):
        Scores.read(tmp_path)


def test_files_of_two_evaluations_are_not_mixed(scores: Scores, tmp_path: Path) -> None:
    """As after a kill between the two files: the new ranks lie beside the old scores."""
    scores.write(tmp_path)
    other = tmp_path / "other"
    Scores("abc", {}, {}, {"text_to_clip/both": table(seed=5)}).write(other)
    (other / RANKS_FILE).replace(tmp_path / RANKS_FILE)
    with pytest.raises(ValueError, match=rf"{RANKS_FILE} is not the one"):
        Scores.read(tmp_path)


def test_a_failed_write_leaves_the_old_scores(scores: Scores, tmp_path: Path, monkeypatch) -> None:
    scores.write(tmp_path)

    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        Scores("other", {}).write(tmp_path)
    assert same(Scores.read(tmp_path), scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("values"), "values: Field required"),
        (lambda d: d.update(extra=1), "extra: Extra inputs"),
        (lambda d: d["values"].update(x="high"), "values.x"),
        (lambda d: d["values"].update(x=float("nan")), "values.x"),
        (lambda d: d["intervals"].update(missing=[1.0, 2.0]), "missing has no score"),
        (lambda d: d["intervals"].update({"probe/nonverbal/sound/R@1": [2.0, 1.0]}), "runs backwards"),
        (lambda d: d.update(test_set=""), "fingerprint"),
    ],
)
def test_a_malformed_document_is_named(scores: Scores, tmp_path: Path, change, message: str) -> None:
    scores.write(tmp_path)
    document = json.loads((tmp_path / SCORES_FILE).read_text())
    change(document)
    (tmp_path / SCORES_FILE).write_text(json.dumps(document))
    with pytest.raises(ValueError, match=rf"(?s){SCORES_FILE}.*{message}"):
        Scores.read(tmp_path)


def test_a_document_that_is_not_json_is_named(scores: Scores, tmp_path: Path) -> None:
    scores.write(tmp_path)
    (tmp_path / SCORES_FILE).write_text('{"test_set": "a')
    with pytest.raises(ValueError, match=SCORES_FILE):
        Scores.read(tmp_path)


def with_ranks(directory: Path, content: bytes) -> None:
    (directory / RANKS_FILE).write_bytes(content)
    document = json.loads((directory / SCORES_FILE).read_text())
    document["ranks_sha256"] = hashlib.sha256(content).hexdigest()
    (directory / SCORES_FILE).write_text(json.dumps(document))


def parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def test_malformed_ranks_are_named(scores: Scores, tmp_path: Path) -> None:
    scores.write(tmp_path)
    complete = pq.read_table(tmp_path / RANKS_FILE)
    low = complete.set_column(complete.column_names.index("rank"), "rank", pa.array(np.zeros(len(complete))))
    holes = complete.set_column(0, "direction", pa.array([None] * len(complete), pa.string()))
    twice = pa.concat_tables([complete, complete])
    for content, message in [
        (b"no parquet", "not a table of ranks"),
        (parquet(complete.drop_columns(["rank"])), "its columns are"),
        (parquet(low), "rank is not"),
        (parquet(holes), "empty cells"),
        (parquet(twice), "occurs twice"),
    ]:
        with_ranks(tmp_path, content)
        with pytest.raises(ValueError, match=rf"(?s){RANKS_FILE}.*{message}"):
            Scores.read(tmp_path)


def test_impossible_scores_are_refused() -> None:
    found = table()
    with pytest.raises(ValueError, match=r"x is nan"):
        Scores("abc", {"x": float("nan")})
    with pytest.raises(ValueError, match="are not named group/modality"):
        Scores("abc", {}, {}, {"both": found})
    with pytest.raises(ValueError, match=r"MnR is 1\.0, but its queries give"):
        Scores("abc", {"text_to_clip/both/MnR": 1.0}, {}, {"text_to_clip/both": found})
    with pytest.raises(ValueError, match="not one table"):
        QueryTable(found.query_ids[1:], found.clip_ids, found.ranks)
    with pytest.raises(ValueError, match="occurs twice"):
        QueryTable(("a", "a"), ("c", "c"), QueryRanks(np.ones(2), np.ones((2, 3))))


def test_fingerprint_knows_clips_captions_and_content_but_no_order() -> None:
    captions = [("a", "a dog"), ("a", "a bark"), ("b", "a cat")]
    print_ = fingerprint(captions)
    assert print_ == fingerprint(reversed(captions))
    others = [captions[:2], [("b", "a dog"), *captions[1:]], [("a", "a dug"), *captions[1:]]]
    assert len({print_, fingerprint(captions, "content"), *map(fingerprint, others)}) == 5
    with pytest.raises(ValueError, match="without captions"):
        fingerprint([])


def test_only_ranks_are_better_when_lower() -> None:
    assert lower_is_better("text_to_clip/both/MdR")
    assert lower_is_better("clip_to_text/video/MnR")
    assert not lower_is_better("text_to_clip/both/R@10")
    assert not lower_is_better("probe/nonverbal/sound/R@1")


def test_the_tree_holds_every_value_and_interval_once(scores: Scores) -> None:
    tree = scores.tree()
    assert tree["probe"]["nonverbal"]["sound"] == {"R@1": 66.0, "ci95": {"R@1": [60.0, 70.0]}}
    both = tree["text_to_clip"]["both"]
    assert {k: v for k, v in both.items() if k != "ci95"} == {
        name.rsplit("/", 1)[1]: value for name, value in scores.values.items() if name.startswith("text_to_clip/both/")
    }
    assert both["ci95"]["R@1"] == list(scores.intervals["text_to_clip/both/R@1"])
    assert json.dumps(tree)


@pytest.fixture
def sampled() -> Scores:
    samples = {"caption/both/CIDEr": Samples(("a", "b", "c"), np.array([1.0, 2.0, 6.0]))}
    return summarise_samples("abc", samples, 100, 0, {"caption/both/BLEU-4": 0.5}, {"METEOR": "left out"})


def test_means_over_clips_have_values_and_intervals_and_the_rest_has_not(sampled: Scores) -> None:
    assert sampled.values == {"caption/both/CIDEr": 3.0, "caption/both/BLEU-4": 0.5}
    assert sampled.intervals.keys() == {"caption/both/CIDEr"}
    low, high = sampled.intervals["caption/both/CIDEr"]
    assert 1.0 <= low < 3.0 < high <= 6.0


def test_samples_that_are_not_those_of_the_scores_are_noticed(sampled: Scores, tmp_path: Path) -> None:
    sampled.write(tmp_path)
    assert Scores.read(tmp_path).notes == {"METEOR": "left out"}
    other = Samples(("a", "b", "c"), np.array([0.0, 3.0, 6.0]))
    replace(sampled, samples={"caption/both/CIDEr": other}).write(tmp_path / "other")
    (tmp_path / "other" / SAMPLES_FILE).replace(tmp_path / SAMPLES_FILE)
    with pytest.raises(ValueError, match=rf"{SAMPLES_FILE} is not the one"):
        Scores.read(tmp_path)
    (tmp_path / SAMPLES_FILE).unlink()
    with pytest.raises(ValueError, match=rf"{SAMPLES_FILE} is missing"):
        Scores.read(tmp_path)


def test_a_score_that_its_clips_do_not_give_is_refused(sampled: Scores) -> None:
    with pytest.raises(ValueError, match=r"caption/both/CIDEr is 4\.0, but its clips give 3\.0"):
        replace(sampled, values={"caption/both/CIDEr": 4.0})


@pytest.mark.parametrize(
    ("clips", "values", "message"),
    [(("a",), [1.0, 2.0], "1 clips and 2 values"), ((), [], "0 clips and 0"), (("a", "a"), [1.0, 2.0], "twice")],
)
def test_samples_are_a_number_for_each_of_some_clips(clips: tuple[str, ...], values: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Samples(clips, np.array(values))
