"""The answer of a search: hits in, a table for the terminal and a `Page` with pictures and sound out."""

from collections.abc import Sequence

from clip4vla.inference.index import Hit, Index, Listen
from clip4vla.records import MODALITIES
from clip4vla.reports.cards import SCORE_NOTE, cosine_facts
from clip4vla.reports.pages import Card, Page, Section, Sound
from clip4vla.reports.tables import MISSING, MODALITY_LABELS, Table
from clip4vla.utils.numbers import format_count, format_span, format_weights


def hits_table(title: str, hits: Sequence[Hit]) -> Table:
    """A row for each hit, the best first, with the cosines by modality."""
    labels = [MODALITY_LABELS[m] for m in MODALITIES]
    rows = []
    for rank, hit in enumerate(hits, 1):
        cosines = cosine_facts(hit.scores)
        span = format_span(hit.start_s, hit.end_s)
        rows.append([f"{rank}. {hit.path}", span, *(cosines.get(label, MISSING) for label in labels)])
    return Table(title, ["clip", "span", *labels], rows)


def search_page(sentence: str, hits: Sequence[Hit], index: Index, listen: Listen | None = None) -> Page:
    """A page with a card for each of the `hits` of `sentence`, the best first; `listen` as in `Index.search`."""
    facts = {
        "model": f"{index.model.name} version {index.model.version}",
        "folder": str(index.folder),
        "clips": format_count(len(index)),
    }
    if weights := index.listens_for(sentence, listen):
        facts["listened for"] = format_weights(weights)
    cards = [_card(rank, hit) for rank, hit in enumerate(hits, 1)]
    note = f"A card shows the score of the sentence and the clip by modality: {SCORE_NOTE}."
    return Page(f"“{sentence}”", note, facts, sections=[Section(f"{len(hits)} best clips", cards=cards)])


def _card(rank: int, hit: Hit) -> Card:
    sound = None if hit.sound is None else Sound(hit.sound)
    span = format_span(hit.start_s, hit.end_s)
    return Card(f"{rank}. {hit.path}", hit.pictures, sound, facts=cosine_facts(hit.scores), note=span)
