"""A report shows the best, median and worst cases as they are: ranks, scores, and the clip that was meant."""

import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip4vla.clips.ingest import ingest
from clip4vla.clips.loader import ClipStore
from clip4vla.evaluation.report import Captioned, captioning_page, retrieval_page, score_tables
from clip4vla.evaluation.retrieval import correspondence, ranks
from clip4vla.evaluation.scores import QueryTable, Scores, summarise
from clip4vla.evaluation.suite import Gallery
from clip4vla.media.decode import decode
from clip4vla.pages import Mark, Page, Section, Table, render
from clip4vla.records import MODALITIES
from tests.clips.conftest import AUDIO, CLIPS, RATE, write_corpus
from tests.markup import data_of, parse

COUNT = 14


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ClipStore:
    directory = tmp_path_factory.mktemp("clips")
    corpus = write_corpus(directory / "source", {"test": COUNT})
    ingest(corpus.manifest, corpus.media, directory / "out", CLIPS, AUDIO)
    return ClipStore([directory / "out" / "test.lance"])


def gallery_of(store: ClipStore, seed: int = 0) -> Gallery:
    """Clips are the axes of their space, by each modality in another order, so that a sentence is its similarities."""
    rng = np.random.default_rng(seed)
    clips = store.take(range(len(store)))
    captions = [(clip.clip_id, text.text) for clip in clips for text in clip.texts]
    axes = np.eye(len(clips), dtype=np.float32)
    return Gallery(
        clip_ids=store.clip_ids,
        caption_clips=tuple(clip_id for clip_id, _ in captions),
        sentences=tuple(text for _, text in captions),
        captions=rng.permuted(np.linspace(-0.5, 0.9, len(captions) * len(clips), dtype=np.float32)).reshape(
            len(captions), len(clips)
        ),
        clips={"both": axes, "vision": axes[::-1].copy(), "audio": np.roll(axes, 5, axis=0)},
        test_set="0123",
    )


def scores_of(gallery: Gallery) -> Scores:
    pairs = correspondence(gallery.caption_clips, gallery.clip_ids)
    ids = tuple(map(str, range(len(gallery.sentences))))
    tables = {
        f"text_to_clip/{modality}": QueryTable(ids, gallery.caption_clips, ranks(gallery.similarity(modality), pairs))
        for modality in MODALITIES
    }
    return summarise(gallery.test_set, tables, 100, 0, {"probe/verbal/speech/R@1": 60.0})


@pytest.fixture(scope="module")
def gallery(store: ClipStore) -> Gallery:
    return gallery_of(store)


@pytest.fixture(scope="module")
def page(store: ClipStore, gallery: Gallery) -> Page:
    return retrieval_page("report", scores_of(gallery), gallery, store, RATE)


def naive_rank(gallery: Gallery, query: int, modality: str) -> int:
    similarity = gallery.similarity(modality)[query]  # type: ignore[arg-type]
    meant = similarity[gallery.clip_ids.index(gallery.caption_clips[query])]
    return 1 + sum(value > meant for value in similarity)


def query_of(gallery: Gallery, section: Section) -> int:
    return gallery.sentences.index(section.title.strip("“”"))


def test_the_best_the_median_and_the_worst_queries_are_shown(page: Page, gallery: Gallery) -> None:
    everything = sorted(naive_rank(gallery, query, "both") for query in range(len(gallery.sentences)))
    shown = {
        part.title: [naive_rank(gallery, query_of(gallery, section), "both") for section in part.sections]
        for part in page.sections
    }
    assert list(shown) == ["Best", "Median", "Worst"]
    assert [len(found) for found in shown.values()] == [3, 3, 3]
    assert shown["Best"][0] == everything[0]
    assert shown["Best"] == sorted(shown["Best"])
    assert shown["Worst"][0] == everything[-1]
    assert shown["Worst"] == sorted(shown["Worst"], reverse=True)
    assert max(shown["Best"]) <= min(shown["Median"]) <= max(shown["Median"]) <= min(shown["Worst"])
    assert abs(np.median(everything) - np.mean(shown["Median"])) <= 2


def test_no_clip_is_meant_twice(page: Page, gallery: Gallery) -> None:
    meant = [gallery.caption_clips[query_of(gallery, s)] for part in page.sections for s in part.sections]
    assert len(meant) == len(set(meant)) == 9


def test_of_equal_ranks_the_clearest_comes_first(store: ClipStore, gallery: Gallery) -> None:
    rows = [gallery.clip_ids.index(clip_id) for clip_id in gallery.caption_clips]
    margins = np.linspace(0.1, 0.9, len(rows), dtype=np.float32)
    captions = np.zeros_like(gallery.captions)
    captions[np.arange(len(rows)), rows] = margins
    clear = replace(gallery, captions=captions)
    page = retrieval_page("report", scores_of(clear), clear, store, RATE)
    best = [margins[query_of(clear, section)] for section in page.sections[0].sections]
    assert best[0] == margins.max()
    assert best == sorted(best, reverse=True)


def test_a_query_says_how_its_clip_ranks_and_marks_it_among_those_found(page: Page, gallery: Gallery) -> None:
    lengths = set()
    for section in (section for part in page.sections for section in part.sections):
        query = query_of(gallery, section)
        rank = {modality: naive_rank(gallery, query, modality) for modality in MODALITIES}
        assert section.marks == [Mark(rank["both"] == 1, f"rank {rank['both']} of 14")]
        clip_id = gallery.caption_clips[query]
        assert section.note == (
            f"The clip is {clip_id}. By vision alone its rank is {rank['vision']}, by audio alone {rank['audio']}."
        )
        order = np.argsort(-gallery.similarity("both")[query])
        places = [*range(1, 6), *([rank["both"]] if rank["both"] > 5 else [])]
        assert [card.title for card in section.cards] == [f"{p}. {gallery.clip_ids[order[p - 1]]}" for p in places]
        assert [card.title for card in section.cards if card.marks] == [f"{rank['both']}. {clip_id}"]
        lengths.add(len(section.cards))
    assert lengths == {5, 6}


def test_a_card_has_the_scores_and_the_sentences_of_its_clip(page: Page, gallery: Gallery) -> None:
    section = page.sections[1].sections[0]
    query = query_of(gallery, section)
    for card in section.cards:
        clip_id = card.title.split(". ")[1]
        row = gallery.clip_ids.index(clip_id)
        for modality in MODALITIES:
            assert card.scores[modality] == pytest.approx(gallery.similarity(modality)[query, row])
        sentences = [s for s, c in zip(gallery.sentences, gallery.caption_clips, strict=True) if c == clip_id]
        assert [list(lines.lines) for lines in card.texts] == [sentences]


def test_the_page_shows_and_sounds(page: Page, tmp_path: Path) -> None:
    root = parse(render(page))
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


def test_the_head_has_the_scores_with_their_intervals(gallery: Gallery) -> None:
    scores = scores_of(gallery)
    retrieval, probe = score_tables(scores)
    assert [row[0] for row in retrieval.rows] == [f"text → clip, {m}" for m in ("vision", "audio", "vision + audio")]
    low, high = scores.intervals["text_to_clip/both/R@5"]
    value = scores.values["text_to_clip/both/R@5"]
    assert retrieval.rows[2][retrieval.head.index("R@5")] == f"{value:.1f} [{low:.1f}, {high:.1f}]"
    assert probe.rows == [["verbal/speech/R@1", "60.0"]]
    assert len(score_tables(replace(scores, values={}, intervals={}, queries={}))) == 1


@pytest.mark.parametrize(("clips", "titles"), [(1, ["Best"]), (2, ["Best", "Worst"]), (3, ["Best", "Median", "Worst"])])
def test_few_clips_are_shown_once_each(clips: int, titles: list[str], store: ClipStore) -> None:
    class Few(ClipStore):
        clip_ids = store.clip_ids[:clips]

        def __len__(self) -> int:
            return clips

    few = Few(store.paths)
    gallery = gallery_of(few)
    page = retrieval_page("report", scores_of(gallery), gallery, few, RATE)
    assert [part.title for part in page.sections] == titles
    assert [len(part.sections) for part in page.sections] == [1] * clips
    assert all(len(section.cards) == clips for part in page.sections for section in part.sections)


def test_other_clips_than_those_scored_are_refused(store: ClipStore, gallery: Gallery) -> None:
    other = replace(gallery, clip_ids=("other", *gallery.clip_ids[1:]))
    with pytest.raises(ValueError, match="the store's 14 clips are not the 14 of the gallery"):
        retrieval_page("report", scores_of(gallery), other, store, RATE)


def captioned(scores: Sequence[float]) -> list[Captioned]:
    mark = Mark(True, "seen")
    return [
        Captioned(f"test{i}", [f"reference {i}", "another"], f"generated {i}", score, {"CIDEr": score}, [mark])
        for i, score in enumerate(scores)
    ]


def test_captions_stand_beside_their_references_from_best_to_worst(store: ClipStore) -> None:
    table = Table("scores", ["", "CIDEr"], [["both", "0.7"]])
    page = captioning_page("captions", "note", [table], captioned([0.5, 0.9, 0.1, 0.7, 0.3]), store, RATE)
    assert (page.title, page.note, page.tables) == ("captions", "note", [table])
    assert [[card.title for card in part.cards] for part in page.sections] == [["test1"], ["test0"], ["test2"]]
    card = page.sections[1].cards[0]
    assert [(lines.label, list(lines.lines)) for lines in card.texts] == [
        ("generated", ["generated 0"]),
        ("references", ["reference 0", "another"]),
    ]
    assert (card.scores, card.marks) == ({"CIDEr": 0.5}, [Mark(True, "seen")])
    assert len(card.pictures) == 2
    assert card.sound is not None


def test_a_caption_of_an_unknown_clip_is_refused(store: ClipStore) -> None:
    with pytest.raises(ValueError, match=r"there is no clip stranger to show in .*test\.lance"):
        captioning_page("captions", "", [], [Captioned("stranger", [], "", 0.0, {})], store, RATE)
