"""A report shows the best, median and worst cases as they are: ranks, scores and the right clip."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.ingest import ingest
from clip4vla.evaluation.retrieval_evaluator import EmbeddedSplit
from clip4vla.evaluation.retrieval_metrics import correspondence, ranks
from clip4vla.evaluation.scores import QueryTable, Scores, summarise
from clip4vla.media.decode import decode
from clip4vla.records import MODALITIES
from clip4vla.reports.pages import Mark, Page, Section, render_page
from clip4vla.reports.retrieval_report import query_tables, retrieval_page, retrieval_tables, unseen_tables
from clip4vla.reports.tables import DIRECTION_LABELS, MODALITY_LABELS, to_markdown
from clip4vla.utils.numbers import format_score
from tests.clips.conftest import AUDIO, CLIPS, RATE, write_corpus
from tests.evaluation.by_kind import WEIGHTS, scores_by_kind
from tests.markup import data_of, parse

COUNT = 14


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ClipDataset:
    directory = tmp_path_factory.mktemp("clips")
    corpus = write_corpus(directory / "source", {"test": COUNT})
    ingest(corpus.manifest, corpus.media, directory / "out", CLIPS, AUDIO)
    return ClipDataset([directory / "out" / "test.lance"])


def split_of(dataset: ClipDataset, seed: int = 0) -> EmbeddedSplit:
    """Clips are unit axes, in another order by each modality, so that a sentence's vector holds its similarities."""
    rng = np.random.default_rng(seed)
    clips = dataset.take(range(len(dataset)))
    captions = [(clip.clip_id, text.text) for clip in clips for text in clip.texts]
    axes = np.eye(len(clips), dtype=np.float32)
    return EmbeddedSplit(
        clip_ids=dataset.clip_ids,
        caption_clips=tuple(clip_id for clip_id, _ in captions),
        sentences=tuple(text for _, text in captions),
        captions=rng.permuted(np.linspace(-0.5, 0.9, len(captions) * len(clips), dtype=np.float32)).reshape(
            len(captions), len(clips)
        ),
        clips={"both": axes, "video": axes[::-1].copy(), "audio": np.roll(axes, 5, axis=0)},
        audio={},
        has_sound=tuple(clip.has_sound for clip in clips),
        test_set="0123",
    )


def scores_of(split: EmbeddedSplit) -> Scores:
    pairs = correspondence(split.caption_clips, split.clip_ids)
    ids = tuple(map(str, range(len(split.sentences))))
    tables = {
        f"text_to_clip/{modality}": QueryTable(ids, split.caption_clips, ranks(split.similarity(modality), pairs))
        for modality in MODALITIES
    }
    return summarise(split.test_set, tables, 100, 0, {"probe/verbal/speech/R@1": 60.0})


@pytest.fixture(scope="module")
def split(dataset: ClipDataset) -> EmbeddedSplit:
    return split_of(dataset)


@pytest.fixture(scope="module")
def page(dataset: ClipDataset, split: EmbeddedSplit) -> Page:
    return retrieval_page("report", scores_of(split), split, dataset, RATE)


def naive_rank(split: EmbeddedSplit, query: int, modality: str) -> int:
    similarity = split.similarity(modality)[query]  # type: ignore[arg-type]
    right = similarity[split.clip_ids.index(split.caption_clips[query])]
    return 1 + sum(value > right for value in similarity)


def query_of(split: EmbeddedSplit, section: Section) -> int:
    return split.sentences.index(section.title.strip("“”"))


def test_the_best_the_median_and_the_worst_queries_are_shown(page: Page, split: EmbeddedSplit) -> None:
    everything = sorted(naive_rank(split, query, "both") for query in range(len(split.sentences)))
    shown = {
        part.title: [naive_rank(split, query_of(split, section), "both") for section in part.sections]
        for part in page.sections
    }
    assert list(shown) == ["Best queries", "Median queries", "Worst queries"]
    assert [len(found) for found in shown.values()] == [3, 3, 3]
    assert shown["Best queries"][0] == everything[0]
    assert shown["Best queries"] == sorted(shown["Best queries"])
    assert shown["Worst queries"][0] == everything[-1]
    assert shown["Worst queries"] == sorted(shown["Worst queries"], reverse=True)
    assert (
        max(shown["Best queries"])
        <= min(shown["Median queries"])
        <= max(shown["Median queries"])
        <= min(shown["Worst queries"])
    )
    assert abs(np.median(everything) - np.mean(shown["Median queries"])) <= 2


def test_no_clip_is_the_right_one_of_two_queries(page: Page, split: EmbeddedSplit) -> None:
    right = [split.caption_clips[query_of(split, s)] for part in page.sections for s in part.sections]
    assert len(right) == len(set(right)) == 9


def test_of_equal_ranks_the_clearest_comes_first(dataset: ClipDataset, split: EmbeddedSplit) -> None:
    rows = [split.clip_ids.index(clip_id) for clip_id in split.caption_clips]
    margins = np.linspace(0.1, 0.9, len(rows), dtype=np.float32)
    captions = np.zeros_like(split.captions)
    captions[np.arange(len(rows)), rows] = margins
    clear = replace(split, captions=captions)
    page = retrieval_page("report", scores_of(clear), clear, dataset, RATE)
    best = [margins[query_of(clear, section)] for section in page.sections[0].sections]
    assert best[0] == margins.max()
    assert best == sorted(best, reverse=True)


def test_a_query_shows_the_rank_of_its_clip_and_marks_it_among_those_found(page: Page, split: EmbeddedSplit) -> None:
    lengths = set()
    for section in (section for part in page.sections for section in part.sections):
        query = query_of(split, section)
        rank = {modality: naive_rank(split, query, modality) for modality in MODALITIES}
        assert section.marks == [Mark(rank["both"] == 1, f"rank {rank['both']} of 14")]
        clip_id = split.caption_clips[query]
        alone = ", ".join(f"{rank[m]} by {m} alone" for m in MODALITIES if m != "both")
        assert section.note == f"Right clip: {clip_id}. Its rank: {alone}."
        order = np.argsort(-split.similarity("both")[query])
        places = [*range(1, 6), *([rank["both"]] if rank["both"] > 5 else [])]
        assert [card.title for card in section.cards] == [f"{p}. {split.clip_ids[order[p - 1]]}" for p in places]
        assert [card.title for card in section.cards if card.marks] == [f"{rank['both']}. {clip_id}"]
        lengths.add(len(section.cards))
    assert lengths == {5, 6}


def test_a_card_has_the_cosines_and_the_sentences_of_its_clip(page: Page, split: EmbeddedSplit) -> None:
    section = page.sections[1].sections[0]
    query = query_of(split, section)
    for card in section.cards:
        clip_id = card.title.split(". ")[1]
        row = split.clip_ids.index(clip_id)
        for modality in MODALITIES:
            cosine = float(split.similarity(modality)[query, row])
            assert card.facts[MODALITY_LABELS[modality]] == format_score("cosine", cosine)
        sentences = [s for s, c in zip(split.sentences, split.caption_clips, strict=True) if c == clip_id]
        assert [list(lines.lines) for lines in card.texts] == [sentences]


def test_the_page_holds_pictures_and_sounds(page: Page, tmp_path: Path) -> None:
    root = parse(render_page(page))
    cards = root.all("article")
    assert {len(card.all("img")) for card in cards} == {0, 2}
    assert {len(card.all("audio")) for card in cards} == {0, 1}
    picture = Image.open(io.BytesIO(data_of(root.all("img")[0].attribute("src"), "image/jpeg")))
    assert min(picture.size) == CLIPS.size
    sound = tmp_path / "sound.mp3"
    sound.write_bytes(data_of(root.all("audio")[0].attribute("src"), "audio/mpeg"))
    audio = decode(sound, 0.0, None, frames=1, short_side=32, sample_rate=RATE).audio
    assert audio is not None
    assert np.abs(audio.astype(int)).max() > 3000


def test_the_head_has_the_scores_with_their_intervals(split: EmbeddedSplit) -> None:
    scores = scores_of(split)
    retrieval, probe = retrieval_tables(scores)
    assert retrieval.title.startswith(DIRECTION_LABELS["text_to_clip"])
    assert [row[0] for row in retrieval.rows] == [MODALITY_LABELS[m] for m in MODALITIES]
    low, high = scores.intervals["text_to_clip/both/R@5"]
    value = scores.values["text_to_clip/both/R@5"]
    assert retrieval.rows[2][retrieval.head.index("R@5")] == f"{value:.1f} [{low:.1f}, {high:.1f}]"
    assert (probe.head, probe.rows) == (["", "speech"], [["token verbal", "60.0"]])
    assert retrieval_tables(replace(scores, values={}, intervals={}, queries={})) == []


def test_reranked_scores_have_a_row_of_their_own(split: EmbeddedSplit) -> None:
    scores = scores_of(split)
    reranked = replace(scores, values={**scores.values, "text_to_clip/reranked/R@1": 71.0})
    assert retrieval_tables(reranked)[0].rows[-1][:2] == ["reranked", "71.0"]


KINDS = {"unrelated_sound": (19, 1, 20), "heard": (0, 9, 18), "mood": (1, 1, 1), "all": (2, 6, 18)}


def test_kinds_of_query_have_a_row_with_recalls_by_modality_and_the_weights_of_the_experts() -> None:
    scores = scores_by_kind(KINDS, {"heard": (0, 8, 16)}, WEIGHTS)
    trained, held_out = query_tables(scores)
    assert trained.head == [
        *("", "video", "audio", "video + audio"),
        *("weight of picture", "weight of speech", "weight of sound"),
    ]
    assert [row[0] for row in trained.rows] == ["all", "heard", "unrelated_sound", "mood"]
    low, high = scores.intervals["by_query/heard/audio/R@1"]
    assert trained.rows[1][1:3] == ["0.0 [0.0, 0.0]", f"45.0 [{low:.1f}, {high:.1f}]"]
    assert trained.rows[1][4:] == ["0.25", "0.12", "0.62"]
    assert trained.numeric == (False, *[True] * 6)
    assert [row[0] for row in held_out.rows] == ["heard"]
    assert held_out.rows[0][3].startswith("80.0 [")
    assert "in phrasings that training does not have" in held_out.title


def test_without_experts_a_table_by_kind_has_no_weights_and_without_queries_there_is_none() -> None:
    [table] = query_tables(scores_by_kind(KINDS))
    assert table.head == ["", "video", "audio", "video + audio"]
    assert query_tables(scores_by_kind({})) == []


def test_tables_by_kind_are_on_the_page_and_in_markdown(dataset: ClipDataset, split: EmbeddedSplit) -> None:
    by_kind = scores_by_kind(KINDS, {"heard": (0, 8, 16)}, WEIGHTS)
    own = scores_of(split)
    joined = replace(
        own,
        values={**own.values, **{name: value for name, value in by_kind.values.items() if "_to_" not in name}},
        queries={**own.queries, **{name: table for name, table in by_kind.queries.items() if "_to_" not in name}},
    )
    page = retrieval_page("report", joined, split, dataset, RATE)
    titles = [caption.text for caption in parse(render_page(page)).all("figcaption")]
    assert [table.title for table in query_tables(joined)] == titles[1:3]
    text = to_markdown(query_tables(joined)[0])
    assert "| unrelated_sound | 95.0 | 5.0 | 100.0 | 0.25 | 0.12 | 0.62 |" in text


def test_unseen_clips_are_beside_the_original_ones_in_a_table_per_corpus() -> None:
    scores = scores_by_kind(KINDS, unseen={"voices": {"said": (20, 9), "all": (18, 12)}, "drawings": {"seen": (19, 4)}})
    drawings, voices = unseen_tables(scores)
    assert voices.title == "voices: R@1 in per cent by video + audio, of the same queries"
    assert voices.head == ["", "original clips", "unseen rendering", "queries"]
    assert [row[0] for row in voices.rows] == ["all", "said"]
    low, high = scores.intervals["unseen/voices/said/both/R@1"]
    assert voices.rows[1] == ["said", "100.0 [100.0, 100.0]", f"45.0 [{low:.1f}, {high:.1f}]", "20"]
    assert voices.numeric == (False, True, True, True)
    assert [row[0] for row in drawings.rows] == ["seen"]
    assert retrieval_tables(scores)[-2:] == [drawings, voices]
    assert unseen_tables(scores_by_kind(KINDS)) == []


@pytest.mark.parametrize(("clips", "titles"), [(1, ["Best"]), (2, ["Best", "Worst"]), (3, ["Best", "Median", "Worst"])])
def test_few_clips_are_shown_once_each(clips: int, titles: list[str], dataset: ClipDataset) -> None:
    class Few(ClipDataset):
        clip_ids = dataset.clip_ids[:clips]

        def __len__(self) -> int:
            return clips

    few = Few(dataset.paths)
    split = split_of(few)
    page = retrieval_page("report", scores_of(split), split, few, RATE)
    assert [part.title.removesuffix(" queries") for part in page.sections] == titles
    assert [len(part.sections) for part in page.sections] == [1] * clips
    assert all(len(section.cards) == clips for part in page.sections for section in part.sections)


def test_other_clips_than_those_scored_are_refused(dataset: ClipDataset, split: EmbeddedSplit) -> None:
    other = replace(split, clip_ids=("other", *split.clip_ids[1:]))
    with pytest.raises(ValueError, match="the dataset's 14 clips are not the 14 of the split"):
        retrieval_page("report", scores_of(split), other, dataset, RATE)
