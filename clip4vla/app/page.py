"""HTML of the search page, in the style of the reports: an answer in, the page or its part with the answer out."""

from collections.abc import Mapping
from typing import Any

from clip4vla.app.searcher import Found, Searcher
from clip4vla.inference.index import Hit
from clip4vla.reports.cards import cosine_facts
from clip4vla.reports.pages import template_environment
from clip4vla.utils.numbers import format_count, format_span, format_weights


class SearchPage:
    """Renders answers of a searcher."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher
        self._templates = template_environment("clip4vla.app", "clip4vla.reports")

    def style(self) -> str:
        """The style sheet: that of the reports, and what the page adds."""
        return self._templates.get_template("style.css.j2").render()

    def page(self, sentence: str, compare: str, found: Found | None) -> str:
        """The whole page; `found` None: nothing has been searched for."""
        index = self._searcher.index
        facts = {
            "model": f"{index.model.name} version {index.model.version}",
            "folder": str(index.folder),
            "clips": format_count(len(index)),
        }
        return self._templates.get_template("app.html.j2").render(
            q=sentence,
            compare=compare,
            facts=facts,
            choices=self._searcher.choices,
            limits=self._searcher.reader.limits,
            captions=self._searcher.captioner is not None,
            **_shown(found),
        )

    def results(self, found: Found) -> str:
        """The part of the page that shows an answer."""
        return self._templates.get_template("results.html.j2").render(**_shown(found))


def _shown(found: Found | None) -> dict[str, Any]:
    """What the templates need of an answer."""
    if found is None:
        return {"found": None}
    cards = [_card(rank, hit) for rank, hit in enumerate(found.hits, 1)]
    return {"found": found, "cards": cards, "listened": format_weights(found.weights)}


def _card(rank: int, hit: Hit) -> Mapping[str, Any]:
    return {
        "row": hit.row,
        "title": f"{rank}. {hit.path}",
        "start_s": hit.start_s,
        "end_s": hit.end_s,
        "span": format_span(hit.start_s, hit.end_s),
        "facts": cosine_facts(hit.scores),
        "pictures": len(hit.pictures),
        "has_sound": hit.sound is not None,
    }
