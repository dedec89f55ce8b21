"""Captions and references in, the field's scores out, by the field's own code: COCO caption evaluation.

The package `pycocoevalcap` holds Stanford's PTB tokenizer, BLEU, METEOR, ROUGE-L, CIDEr-D and SPICE as the COCO server
ran them (Chen et al., arXiv 1504.00325). Its tokenizer, METEOR and SPICE are Java programs. Where Java is missing, so
are METEOR and SPICE, as a note records; the other metrics are then computed over another tokenization, which has a
name of its own, because it isn't what published figures are computed over. The only importer of pycocoevalcap.

Shapes: G clips.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

PTB, SIMPLE = "PTBTokenizer (Stanford CoreNLP 3.4.1)", "lower-cased words without punctuation (no PTBTokenizer)"
"""The two tokenizations, by name."""
NO_JAVA = "left out: there is no Java on this machine"
METRIC_NAMES = (*(f"BLEU-{n}" for n in range(1, 5)), "METEOR", "ROUGE-L", "CIDEr", "SPICE")
KEPT_BY_CLIP = ("ROUGE-L", "CIDEr")
"""Metrics whose values of each clip are kept."""
SPICE_MODELS = "stanford-corenlp-3.6.0-models.jar"

LINE_ENDS = re.compile("[\n\r\v\f\x85\u2028\u2029]+")
"""What Stanford's tokenizer takes for the end of a line, and so of a sentence."""
FIELDS_END = "|||"
"""METEOR's separator of references."""

Tokenized = dict[str, list[str]]
"""Sentences of each clip, as words with a space between them."""


@dataclass(frozen=True)
class CaptionScores:
    """Scores in the units of the standard code: 0 to 1, CIDEr-D 0 to 10."""

    values: Mapping[str, float]
    """`BLEU-1` to `BLEU-4` and `METEOR` of all clips together, `ROUGE-L`, `CIDEr` (which is CIDEr-D) and `SPICE` as
    means over clips; what couldn't be computed isn't there."""
    each: Mapping[str, NDArray[np.float64]]
    """(G,) by clip, of those metrics that are means over clips."""


class CaptionMetrics:
    """Scores captions against the references of one test set, in one tokenization.

    Args:
        references: the sentences of each clip, at least one.
        java: whether to use it where it is installed.

    Attributes:
        tokenizer: name of the tokenization.
        notes: why a metric is left out, by its name.
    """

    def __init__(self, references: Mapping[str, Sequence[str]], java: bool = True) -> None:
        use_java = java and shutil.which("java") is not None
        self._tokenize: Callable[[Mapping[str, Sequence[str]]], Tokenized] = _by_ptb if use_java else _by_words
        self.tokenizer = PTB if use_java else SIMPLE
        self.notes: dict[str, str] = {}
        self._scorers = _python_scorers()
        if use_java:
            self._add_java_scorers()
        else:
            why = NO_JAVA if java else "left out: Java is turned off"
            self.notes = {"METEOR": why, "SPICE": why}
        self._references = self._tokenize(references)

    def _add_java_scorers(self) -> None:
        from pycocoevalcap.meteor.meteor import Meteor
        from pycocoevalcap.spice import spice

        with _english():
            self._scorers["METEOR"] = Meteor()
        if (Path(spice.__file__).parent / "lib" / SPICE_MODELS).is_file():
            self._scorers["SPICE"] = spice.Spice()
        else:
            self.notes["SPICE"] = (
                f"left out: {SPICE_MODELS} isn't installed; `python -m pycocoevalcap.spice.get_stanford_models` gets it"
            )

    def score(self, captions: Mapping[str, str]) -> CaptionScores:
        """Score one caption for each clip that has references.

        Raises:
            ValueError: a clip has references but no caption, or the other way round.
        """
        if captions.keys() != self._references.keys():
            odd = sorted(captions.keys() ^ self._references.keys())
            raise ValueError(f"{len(odd)} clips have either captions or references but not both, such as {odd[0]}")
        ordered = {clip: [captions[clip]] for clip in self._references}
        tokenized = self._tokenize(ordered)
        values: dict[str, float] = {}
        each: dict[str, NDArray[np.float64]] = {}
        for name, scorer in self._scorers.items():
            overall, by_clip = _compute(scorer, self._references, tokenized)
            if name == "BLEU":
                values |= {f"BLEU-{n}": float(value) for n, value in enumerate(overall, 1)}
            else:
                values[name] = float(overall)
            if name in KEPT_BY_CLIP:
                each[name] = np.asarray(by_clip, dtype=np.float64)
        return CaptionScores(values, each)


def _python_scorers() -> dict[str, Any]:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    return {"BLEU": Bleu(4), "ROUGE-L": Rouge(), "CIDEr": Cider()}


def _compute(scorer: Any, references: Tokenized, captions: Tokenized) -> tuple[Any, Any]:
    """Score of all clips, and of each in the order of `references`."""
    quiet = {"verbose": 0} if scorer.method() == "Bleu" else {}
    with _english():
        return scorer.compute_score(references, captions, **quiet)


@contextmanager
def _english() -> Iterator[None]:
    """Have the Java programs that are started here read UTF-8, and write and compare as in English, in any locale."""
    before = os.environ.get("LC_ALL")
    os.environ["LC_ALL"] = "C.UTF-8"
    try:
        yield
    finally:
        if before is None:
            del os.environ["LC_ALL"]
        else:
            os.environ["LC_ALL"] = before


def _as_lines(texts: Sequence[str]) -> list[str]:
    """The texts, each on one line, of valid Unicode, without what METEOR separates references by."""
    one_line = (LINE_ENDS.sub(" ", text).replace(FIELDS_END, " ") for text in texts)
    return [line.encode(errors="replace").decode() for line in one_line]


def _by_ptb(sentences: Mapping[str, Sequence[str]]) -> Tokenized:
    """Stanford's tokenizer, punctuation left out."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    entries = {clip: [{"caption": text} for text in _as_lines(texts)] for clip, texts in sentences.items()}
    with _english():
        tokenized: Tokenized = PTBTokenizer().tokenize(entries)
    return tokenized


def _by_words(sentences: Mapping[str, Sequence[str]]) -> Tokenized:
    """Runs of letters, digits, apostrophes and hyphens, in lower case."""
    return {
        clip: [" ".join(re.findall(r"\w+(?:['’-]\w+)*", text.lower())) for text in texts]
        for clip, texts in sentences.items()
    }
