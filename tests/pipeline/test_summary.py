"""What a stage left, in Markdown."""

from pathlib import Path

import pytest

from clip4vla.pipeline import summary
from clip4vla.pipeline.summary import project_summary, summarise_stage
from tests.evaluation.by_kind import WEIGHTS, scores_by_kind


@pytest.fixture
def evaluations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of evaluations of a project whose runs are recorded elsewhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(summary, "read_run", lambda _: {"run_id": "0123456789abcdef"})
    monkeypatch.setattr(summary, "run_page", lambda _, run_id: f"http://mlflow/{run_id}")
    return tmp_path / "runs" / "evaluations"


def test_a_retrieval_model_is_summarised_by_kind_of_query_with_its_weights(evaluations: Path) -> None:
    kinds = {"heard": (0, 9, 18), "seen": (19, 0, 19)}
    scores_by_kind(kinds, {"heard": (0, 8, 16)}, WEIGHTS).write(evaluations / "retrieval")
    found = summarise_stage("evaluate@retrieval")
    assert found.headline.startswith("R@1 90.0 [")
    assert "| by_query/heard/both/R@1 | 90.0 [" in found.report
    head = "|  | video | audio | video + audio | weight of picture | weight of speech | weight of sound |"
    assert found.report.count(head) == 2
    rows = [line for line in found.report.splitlines() if line.startswith(("| seen |", "| heard |"))]
    assert [row.split(" | ")[0] for row in rows] == ["| seen", "| heard", "| heard"]
    assert all(row.endswith("| 0.25 | 0.12 | 0.62 |") for row in rows)
    assert found.report.endswith("[MLflow run 01234567](http://mlflow/0123456789abcdef)")


def test_unseen_clips_are_in_the_summary(evaluations: Path) -> None:
    scores_by_kind({"said": (0, 9, 18)}, unseen={"voices": {"said": (18, 9)}}).write(evaluations / "retrieval")
    report = summarise_stage("evaluate@retrieval").report
    assert "**voices: R@1 in per cent by video + audio, of the same queries**" in report
    assert "| unseen/voices/said/both/R@1 | 45.0 [" in report
    assert "original/voices" not in report


def test_without_queries_a_summary_has_one_table(evaluations: Path) -> None:
    scores_by_kind({}).write(evaluations / "retrieval")
    report = summarise_stage("evaluate@retrieval").report
    assert report.count("| --- |") == 1
    assert "by_query" not in report


@pytest.mark.parametrize("damage", ["", "{}", "[]", '{"version": "1", "promote": 1e999}'])
def test_a_damaged_decision_is_one_sentence_that_names_it(evaluations: Path, damage: str) -> None:
    scores_by_kind({}).write(evaluations / "retrieval")
    file = Path("metrics/promotion-retrieval.json")
    file.parent.mkdir()
    file.write_text(damage)
    for use in (lambda: summarise_stage("promote@retrieval"), project_summary):
        with pytest.raises(
            ValueError, match=rf"{file} (can't be read: .*|holds no decision: `dvc repro promote@ret.*)"
        ):
            use()
