"""The contracts between the parts: what one part writes and the next one reads.

Everything here is frozen and free of behaviour beyond its own validation; nothing here imports another
part of the package, so every part may import it.
"""

from dataclasses import dataclass
from typing import Literal

AudioType = Literal["verbal", "nonverbal"]
"""What a text describes of the sound: the words spoken in it (verbal) or everything else (nonverbal)."""

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

Modality = Literal["video", "audio", "both"]
MODALITIES: tuple[Modality, ...] = ("video", "audio", "both")

TaskName = Literal["retrieval", "captioning"]
"""What a pretrained model is fine-tuned for."""
TASKS: tuple[TaskName, ...] = ("retrieval", "captioning")


WEIGHTS_FILE, CONFIG_FILE, RUN_FILE = "model.safetensors", "config.json", "run.json"
"""Files of a model directory: the weights, how the model is built, how it was trained."""


@dataclass(frozen=True)
class Text:
    """One sentence about a clip. `audio_type` is None where the corpus doesn't specify it."""

    text: str
    audio_type: AudioType | None = None


@dataclass(frozen=True)
class SourceRecord:
    """One clip as its corpus describes it: a span of a media file and the sentences about it.

    `media` is a path relative to the corpus' media directory; `start_s` and `end_s` are seconds into that
    file, `end_s` None meaning its end.
    """

    clip_id: str
    media: str
    split: Split
    texts: tuple[Text, ...]
    start_s: float = 0.0
    end_s: float | None = None

    def __post_init__(self) -> None:
        if not self.clip_id:
            raise ValueError("a record needs a clip_id")
        if self.split not in SPLITS:
            raise ValueError(f"clip {self.clip_id}: split {self.split!r} is not one of {', '.join(SPLITS)}")
        if self.start_s < 0 or (self.end_s is not None and self.end_s <= self.start_s):
            raise ValueError(f"clip {self.clip_id}: span {self.start_s}..{self.end_s} s is empty or negative")


@dataclass(frozen=True)
class Reject:
    """A record left out of a manifest or of the clips, with the reason: nothing vanishes silently."""

    clip_id: str
    media: str
    split: str
    reason: str
    detail: str = ""


@dataclass(frozen=True)
class Decision:
    """The decision of the gate: promote or not, and the reasons."""

    promote: bool
    reasons: tuple[str, ...]
