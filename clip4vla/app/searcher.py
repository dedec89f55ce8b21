"""The answers of the search page: a sentence or an example in, the clips that are found out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from clip4vla.app.uploads import read_upload
from clip4vla.inference.embedder import Embedder
from clip4vla.inference.index import EXPERT_OF, Hit, Index, Listen
from clip4vla.inference.limits import ReaderLimits
from clip4vla.inference.media_reader import MediaReader
from clip4vla.records import Modality
from clip4vla.reports.tables import MODALITY_LABELS


@dataclass(frozen=True)
class Choice:
    """What of a clip is compared: everything, or one expert or modality alone."""

    label: str
    by: Modality = "both"
    listen: Listen | None = None


@dataclass(frozen=True)
class Found:
    """An answer."""

    title: str
    hits: Sequence[Hit]
    """The best first."""
    weights: Mapping[str, float]
    """Shares of what was listened for, largest first; empty where the model has no experts."""
    caption: str | None = None
    """Of an example, where there is a captioning model."""


class Searcher:
    """An index, and the models that read what a person types or sends; they are loaded once.

    Args:
        index: is searched.
        captioner: a model that captions examples; None: they get no caption.
        limits: of examples.
    """

    def __init__(self, index: Index, captioner: Embedder | None, limits: ReaderLimits) -> None:
        self.index = index
        self.captioner = captioner
        self.reader = MediaReader(limits)
        self.choices = _choices(index.embedder.experts)

    def by_sentence(self, sentence: str, compare: str, top: int) -> Found:
        """The `top` clips that match a sentence.

        Args:
            compare: a key of `choices`.

        Raises:
            ValueError: the sentence is empty, or `compare` is no such key.
        """
        choice = self._choose(compare)
        hits = self.index.search(sentence, top, choice.by, choice.listen)
        return Found(f"“{sentence}”", hits, self.index.listens_for(sentence, choice.listen))

    def by_example(self, folder: Path, compare: str, top: int) -> Found:
        """The `top` clips that are most like the upload in `folder`, and its caption.

        Raises:
            MediaError: the upload can't be used.
            ValueError: it lacks what is to be compared, or `compare` is no key of `choices`.
        """
        choice = self._choose(compare)
        example = read_upload(self.reader, folder, self.index.embedder)
        hits = self.index.search_like(example, top, choice.by, choice.listen)
        weights = self.index.listens_for_like(example, choice.listen)
        return Found("Like your example", hits, weights, self._caption(folder))

    def _caption(self, folder: Path) -> str | None:
        if self.captioner is None:
            return None
        [caption] = self.captioner.caption_clips([read_upload(self.reader, folder, self.captioner)])
        return caption

    def _choose(self, compare: str) -> Choice:
        if compare not in self.choices:
            raise ValueError(f"compare={compare!r} is none of {', '.join(map(repr, self.choices))}")
        return self.choices[compare]


def _choices(experts: Sequence[str]) -> dict[str, Choice]:
    """By the value that requests have for them; everything is the empty one."""
    if set(EXPERT_OF.values()) <= set(experts):
        return {"": Choice("what the query asks for"), **{name: Choice(name, listen=name) for name in EXPERT_OF}}
    alone: tuple[Modality, ...] = ("video", "audio")
    return {"": Choice(MODALITY_LABELS["both"]), **{m: Choice(MODALITY_LABELS[m], m) for m in alone}}
