"""What reaches the towers besides sound: pixels and token ids."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from benchmarks.parity.deviation import EXACT, Deviation, Tolerance, deviation
from benchmarks.parity.reference import Arrays
from clip4vla.model.pixels import PixelNormalizer
from clip4vla.model.tokenizer import Tokenizer
from clip4vla.model.towers import Architecture

GROUPS = ("visual", "tokens")
PIXELS = Tolerance(1e-5)


def check_images(arrays: Arrays) -> Iterator[Deviation]:
    """Our pixels of each image, cut to the size of the published ones."""
    plain = Architecture("", {})
    normalizer = PixelNormalizer(plain.image_mean, plain.image_std)
    for key in arrays:
        if key.startswith("tensor/"):
            frame = square(arrays[f"img/{key.removeprefix('tensor/')}"].numpy(), arrays[key].shape[-1])
            yield deviation("visual", key, normalizer(frame), arrays[key], PIXELS)


def square(image: np.ndarray, size: int) -> Tensor:
    """(3, size, size) uint8 from (H, W, 3): the shorter side resized by bicubic interpolation, the middle cut out."""
    picture = Image.fromarray(image)
    wide, high = (int(size * side / min(picture.size)) for side in picture.size)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    cut = picture.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1)


def check_text(text: Mapping[str, Any]) -> Iterator[Deviation]:
    """Token ids of sentences alone, of retrieval captions and of pretraining texts, cut to their places."""
    padding = text.get("special_ids", {}).get("PAD")
    for case in _with(text, "tokenize", "ids"):
        tokens = Tokenizer(len(case["ids"]) + 2)([case["text"]])[0]
        ours = tokens[1 : len(case["ids"]) + 1]
        yield deviation("tokens", f"tokenize {case['text']!r}", ours, torch.tensor(case["ids"]), EXACT)
    sentences = [(case["text"], case) for case in _with(text, "retrieval_text", "input_ids")]
    sentences += [(_pretraining_text(case), case) for case in _with(text, "pretrain_text", "input_ids")]
    for sentence, case in sentences:
        published = torch.tensor([0 if token == padding else token for token in case["input_ids"]])
        tokens = Tokenizer(len(published))([sentence])[0]
        ours = F.pad(tokens, (0, len(published) - len(tokens)))
        yield deviation("tokens", f"ids of {sentence!r}", ours, published, EXACT)


def _with(text: Mapping[str, Any], kind: str, ids: str) -> list[dict[str, Any]]:
    """The cases of a kind that have the ids."""
    return [case for case in text.get(kind, []) if ids in case]


def _pretraining_text(case: dict[str, Any]) -> str:
    """The text of a pretraining clip: AudioSet's labels as a sentence, HowTo100M's segments within its span."""
    data = case["data"]
    if case["corpus"] == "audioset":
        return f"the sound of {data['text'][case['index']]}"
    segments = zip(data["text"], data["start"], data["end"], strict=True)
    return " ".join(text for text, start, end in segments if start >= case["start"] and end <= case["end"])
