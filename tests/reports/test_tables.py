"""One table reads the same in Markdown and in the terminal, and shows every score that it is asked for."""

import io

import pytest
from rich.console import Console

from clip4vla.evaluation.scores import Scores, SplitSize
from clip4vla.records import MODALITIES
from clip4vla.reports.tables import (
    MODALITY_LABELS,
    Table,
    comparison_table,
    headlines,
    score_table,
    to_markdown,
    to_terminal,
    value_table,
)
from tests.evaluation.by_kind import scores_by_kind


def scores(**notes: str) -> Scores:
    values = {"probe/verbal/speech/R@1": 60.0}
    for direction in ("clip_to_text", "text_to_clip"):
        values |= {f"{direction}/{m}/{k}": 10.0 for m in reversed(MODALITIES) for k in ("MdR", "R@1")}
    values |= {"text_to_clip/reranked/R@1": 11.0, "caption/both/CIDEr": 0.5}
    return Scores("abc", values, {"text_to_clip/both/R@1": (8.0, 12.34)}, notes=notes)


def test_the_combined_modality_is_named_by_its_parts() -> None:
    assert list(MODALITY_LABELS) == list(MODALITIES)
    assert MODALITY_LABELS["both"] == " + ".join(m for m in MODALITIES if m != "both")
    assert MODALITY_LABELS["audio"] == "audio"


def test_headlines_are_sorted_for_reading() -> None:
    assert headlines([scores(), Scores("abc", {"probe/verbal/sound/R@1": 1.0})]) == [
        *(f"text_to_clip/{m}/R@1" for m in (*MODALITIES, "reranked")),
        *(f"clip_to_text/{m}/R@1" for m in MODALITIES),
        "caption/both/CIDEr",
        "probe/verbal/sound/R@1",
        "probe/verbal/speech/R@1",
    ]


def test_scores_of_the_clips_with_sound_come_last_and_the_size_of_the_test_set_is_noted() -> None:
    names = ("text_to_clip/both/R@1", "caption/both/CIDEr", "clip_to_text/audio/R@1")
    values = {f"{start}{name}": 1.0 for start in ("with_sound/", "") for name in names}
    found = Scores("abc", values, size=SplitSize(1000, 884))
    expected = ["text_to_clip/both/R@1", "clip_to_text/audio/R@1", "caption/both/CIDEr"]
    assert headlines([found]) == [*expected, *(f"with_sound/{name}" for name in expected)]
    assert comparison_table({"mine": found}).notes == ["mine: 1,000 clips, 884 of them with sound"]


def test_kinds_of_query_follow_the_directions_by_both_modalities_and_in_trained_phrasings() -> None:
    kinds = {"mood": (1, 1, 1), "said": (1, 1, 1), "all": (1, 1, 1), "unrelated_sound": (1, 1, 1)}
    found = headlines([scores(), scores_by_kind(kinds, kinds, {"video": 0.5})])
    assert found[7:] == [
        *(f"by_query/{kind}/both/R@1" for kind in ("all", "said", "unrelated_sound", "mood")),
        *("caption/both/CIDEr", "probe/verbal/speech/R@1"),
    ]


def test_models_stand_side_by_side_and_a_missing_score_is_marked() -> None:
    other = Scores("abc", {"text_to_clip/both/R@1": 20.0})
    table = comparison_table({"one": scores(METEOR="left out"), "other": other})
    assert table.head == ["score", "one", "other"]
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["text_to_clip/both/R@1"] == ["10.0 [8.0, 12.3]", "20.0"]
    assert rows["caption/both/CIDEr"] == ["0.500", "–"]
    assert table.notes == ["one: METEOR: left out"]


def test_scores_are_looked_up_by_row_and_column() -> None:
    rows = {"there": "text_to_clip/both", "reranked": "text_to_clip/reranked"}
    table = score_table("title", scores(), rows, {"R@1": "R@1", "rank": "MdR"})
    assert table.head == ["", "R@1", "rank"]
    assert table.rows == [["there", "10.0 [8.0, 12.3]", "10.0"], ["reranked", "11.0", "–"]]


@pytest.mark.parametrize(
    ("cells", "numeric"),
    [
        (["1.0", "69.9 [66.8, 73.1]", "–"], True),
        (["not finite", "+0.26", "1.00e-05", "1,234"], True),
        (["0.0–2.5 s"], True),
        (["1.0", "one.mp4"], False),
        (["1.mp4"], False),
    ],
)
def test_columns_of_numbers_are_aligned_to_the_right(cells: list[str], numeric: bool) -> None:
    assert Table("", ["name", "cell"], [["1", cell] for cell in cells]).numeric == (False, numeric)


def test_markdown_has_title_rule_rows_and_notes() -> None:
    table = Table("title", ["a|b", "R@1"], [["x|y", "1.0 [0.5, 1.5]"]], ["a note"])
    assert to_markdown(table).splitlines() == [
        *("**title**", "", r"| a\|b | R@1 |", "| --- | ---: |", r"| x\|y | 1.0 [0.5, 1.5] |", "", "- a note"),
    ]
    assert to_markdown(value_table("last", {"loss": 1.23456, "clips_per_second": 1234.5})).splitlines() == [
        *("|  | last |", "| --- | ---: |", "| loss | 1.23 |", "| clips_per_second | 1,234 |"),
    ]


def test_the_terminal_shows_every_text_as_it_is() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(to_terminal(Table("[bold]title", ["[red]", "R@1"], [["[x]", "1.0 [0.5, 1.5]"]], ["[a note]"])))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for text in ("[bold]title", "[red]", "[x]", "1.0 [0.5, 1.5]", "[a note]"):
        assert text in shown


def test_a_row_of_another_length_than_the_head_is_refused() -> None:
    with pytest.raises(ValueError, match="scores: a row of 1 cells under a head of 2"):
        Table("scores", ["", "R@1"], [["both"]])
