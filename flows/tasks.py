"""What a pretrained model is fine-tuned for: retrieval or captioning, each with its names, its judge and its gate."""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clip4vla.evaluation.scores import Scores
from clip4vla.params import AudioToken, CaptionParams, FinetuneParams, GateParams, Params
from clip4vla.records import Split
from flows.captioning import caption_table, judge_captions
from flows.training import judge, score_table

TaskName = Literal["retrieval", "captioning"]


@dataclass(frozen=True)
class Task:
    """One of the two."""

    run: Literal["finetune", "caption"]
    """Its section of params.yaml, its run result under `runs/`, and its MLflow experiment."""
    gate_section: Literal["gate", "caption_gate"]
    metrics: str
    """Stem of its file of test scores in `metrics/`."""
    decision: str
    """Stem of its file of the gate's decision there."""
    judge: Callable[[Params, Path, Split, AudioToken], Scores]
    """Scores of a run result on a split."""
    table: Callable[[Mapping[str, Scores]], str]
    """Scores in Markdown, a column per model."""

    def training(self, params: Params) -> FinetuneParams | CaptionParams:
        """Its section of params.yaml."""
        section: FinetuneParams | CaptionParams = getattr(params, self.run)
        return section

    def gate(self, params: Params) -> GateParams:
        """Its gate in params.yaml."""
        section: GateParams = getattr(params, self.gate_section)
        return section


def _judge_retrieval(params: Params, run_directory: Path, split: Split, token: AudioToken) -> Scores:
    return judge(params, run_directory, split, params.finetune, token)[1]


def _judge_captioning(params: Params, run_directory: Path, split: Split, token: AudioToken) -> Scores:
    # the Java programs take longer to start than the validation clips to caption
    return judge_captions(params, run_directory, split, token, java=split == "test")[1]


TASKS: Mapping[str, Task] = {
    "retrieval": Task("finetune", "gate", "retrieval", "promotion", _judge_retrieval, score_table),
    "captioning": Task("caption", "caption_gate", "captioning", "promotion-caption", _judge_captioning, caption_table),
}


def name_on_command_line(names: Mapping[str, object]) -> str:
    """The one of `names` that a stage's command asks for.

    Raises:
        SystemExit: it asks for none of them.
    """
    if len(sys.argv) != 2 or sys.argv[1] not in names:
        sys.exit(f"usage: python -m flows.{Path(sys.argv[0]).stem} {{{','.join(names)}}}")
    return sys.argv[1]
