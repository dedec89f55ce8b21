"""What the flows do for captioning: the judgement of its result, and how it is shown."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip4vla.atomic import write_json
from clip4vla.clips.loader import ClipStore
from clip4vla.corpora.stampscenes.scenes import caption_slots
from clip4vla.evaluation.captioning import Captioner, Captions, Slots, score_captions
from clip4vla.evaluation.report import Captioned, captioning_page
from clip4vla.evaluation.scores import Scores
from clip4vla.model.checkpoints import load_model
from clip4vla.pages import Mark, Page, Table
from clip4vla.params import AudioToken, Params
from clip4vla.records import MODALITIES, Split
from flows.training import find_clips

CAPTIONS_FILE = "captions.json"


def judge_captions(
    params: Params, run_directory: Path, split: Split, token: AudioToken, java: bool = True
) -> tuple[Captions, Scores]:
    """Caption a split of the fine-tuning corpora with the run result, and score what it wrote."""
    captioner = Captioner(load_model(run_directory), params.caption, params.evaluate.search)
    store = ClipStore(find_clips(params, "finetune", split))
    captions = captioner.caption(store, token, params.evaluate.batch_size)
    return captions, score_captions(captions, read_slots(params), params.evaluate, java)


def read_slots(params: Params) -> Slots | None:
    """What captions of StampScenes should name; None where there are no labels.

    Raises:
        ValueError: `evaluate.labels` isn't there or holds none.
    """
    path = params.evaluate.labels
    if path is None:
        return None
    try:
        return Slots(json.loads(Path(path).read_text(encoding="utf-8"))["clips"], caption_slots)
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no labels, which evaluate.labels asks for: {error!r}") from error


def write_captions(captions: Captions, path: Path) -> None:
    """A JSON object by clip: its references, and what was written by each modality."""
    clips: dict[str, dict[str, Any]] = {
        clip: {"references": list(texts)} | {modality: written[clip] for modality, written in captions.written.items()}
        for clip, texts in captions.references.items()
    }
    write_json(path, clips)


def caption_page(captions: Captions, scores: Scores, store: ClipStore, slots: Slots | None, sample_rate: int) -> Page:
    """The report: scores by modality, and the clips whose captions, by all that was attended to, are best and worst."""
    best = list(captions.written)[-1]
    tables = {name: scores.samples[f"caption/{best}/{name}"] for name in ("CIDEr", "ROUGE-L")}
    each = {name: dict(zip(found.clip_ids, found.values.tolist(), strict=True)) for name, found in tables.items()}
    captioned = []
    for clip, caption in captions.written[best].items():
        right = slots.read(caption, slots.right[clip]) if slots is not None and clip in slots.right else {}
        shown = {name: values[clip] for name, values in each.items()}
        marks = [Mark(found, role) for role, found in right.items()]
        captioned.append(Captioned(clip, captions.references[clip], caption, shown["CIDEr"], shown, marks))
    note = "; ".join(f"{name}: {text}" for name, text in scores.notes.items())
    return captioning_page("Captioning", note, [_score_table(scores)], captioned, store, sample_rate)


def _score_table(scores: Scores) -> Table:
    """A row per metric, a column per modality."""
    modalities = [m for m in MODALITIES if any(f"/{m}/" in name for name in scores.values)]
    metrics = sorted({name.split("/", 2)[2] for name in scores.values})
    rows = [[metric, *(_cell(scores, f"caption/{m}/{metric}") for m in modalities)] for metric in metrics]
    return Table("Scores by what was attended to, with 95 % intervals (slots: per cent)", ["", *modalities], rows)


def caption_table(scores: Mapping[str, Scores]) -> str:
    """Markdown: every score, a row each, a column per model; what is left out, and why, below."""
    names = sorted({name for s in scores.values() for name in s.values})
    head = ["| score | " + " | ".join(scores) + " |", "| --- |" + " ---: |" * len(scores)]
    rows = [f"| {name} | " + " | ".join(_cell(s, name) for s in scores.values()) + " |" for name in names]
    notes = [f"- {model}: {name}: {note}" for model, s in scores.items() for name, note in s.notes.items()]
    return "\n".join([*head, *rows, "", *notes])


def _cell(scores: Scores, name: str) -> str:
    if name not in scores.values:
        return ""
    low, high = scores.intervals.get(name, (None, None))
    value = f"{scores.values[name]:.3g}"
    return value if low is None else f"{value} [{low:.3g}, {high:.3g}]"
