"""Outputs of the towers and the fusions: encoder outputs and similarities, for every setting found."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.parity.deviation import Deviation, Tolerance, deviation
from benchmarks.parity.model import CROSS_ENCODED, Encoded, Models
from clip4vla.model.fusion import pool

GROUPS = ("encoders", "similarities")
TOLERANCES = {"encoders": Tolerance(2e-5, relative=1e-4), "similarities": Tolerance(1e-3)}
SIMILARITY = r"(?:t_va|t_v|t_a|a_v|t_t|v_v|single_t_v|single_t_a)"
VARIANT = r"(?:_ctrl(?P<control>-?[\d.]+))?(?P<missing>_missing_audio\d+)?"
ENCODER = "(?P<name>audio|audio_last_token|audio_hidden|audio_transformer_out)"
PATTERNS = [
    re.compile(pattern)
    for pattern in (
        r"enc/(?P<name>text|visual|visual_transformer_out)(?:_first\d*)?",
        rf"enc/{ENCODER}_ctrl(?P<control>-?[\d.]+)(?:_first\d*)?",
        rf"retr/(?P<mode>feat_avg|sim_plus){VARIANT}/(?P<name>{SIMILARITY}|pooled_\w+)",
        rf"retr/(?P<mode>loose_seq){VARIANT}/(?P<name>{SIMILARITY}|cross_out)",
        rf"retr/(?P<mode>tight_seq|cross_align){VARIANT}/(?P<name>t_va|single_t_v|single_t_a)",
        rf"(?P<pre>pre)/(?:(?P<name>pooled_\w+|masked_audio_out)|sim/(?P<similarity>{SIMILARITY}))",
    )
]
"""Names of arrays, with the parts that name the setting they were computed with."""
RETRIEVAL_CONTROL, PRETRAINING_CONTROL = "0.5", "2"
"""The setting where the name has none."""


class Setting(NamedTuple):
    """How an array was computed."""

    mode: str
    control: str
    missing: bool


OUTPUTS: Mapping[str, Callable[[Encoded], Tensor]] = {
    "text": lambda one: one.tokens,
    "visual": lambda one: one.frames,
    "visual_transformer_out": lambda one: one.visual_hidden,
    "audio": lambda one: one.tiles,
    "audio_last_token": lambda one: _projected(one)[:, -1].unflatten(0, one.inputs.audio.shape[:2]),
    "audio_hidden": lambda one: _projected(one),
    "audio_transformer_out": lambda one: one.audio_hidden,
    "masked_audio_out": lambda one: one.masked_tiles,
    "cross_out": lambda one: torch.cat(one.attended, dim=1),
    "pooled_text": lambda one: one.sentences,
    "pooled_visual": lambda one: pool(*one.video),
    "pooled_audio": lambda one: pool(*one.audio),
    "pooled_masked_audio": lambda one: pool(one.masked_tiles, one.inputs.audio_mask),
}
"""Encoder outputs by their published names."""


@torch.no_grad()
def check(models: Models) -> Iterator[Deviation]:
    """Every encoder output and similarity whose name has a known setting."""
    places: dict[Setting, list[tuple[str, str]]] = {}
    for key in models.arrays:
        if (place := _place(key)) is not None:
            setting, name = place
            places.setdefault(setting, []).append((key, name))
    for setting, keys in places.items():
        one = models.encoded(*setting)
        for key, name in keys:
            yield _compared(one, key, name, models.arrays[key])


def _place(key: str) -> tuple[Setting, str] | None:
    """How `key` was computed, and which output it is."""
    found = next((match for pattern in PATTERNS if (match := pattern.fullmatch(key))), None)
    if found is None:
        return None
    parts = found.groupdict()
    control = parts.get("control") or (PRETRAINING_CONTROL if parts.get("pre") else RETRIEVAL_CONTROL)
    name = parts.get("similarity") or parts["name"]
    if name not in OUTPUTS and not re.fullmatch(SIMILARITY, name):
        return None
    return Setting(parts.get("mode") or "feat_avg", control, bool(parts.get("missing"))), name


def _compared(one: Encoded, key: str, name: str, published: Tensor) -> Deviation:
    if name in OUTPUTS:
        ours = OUTPUTS[name](one)
        ours = ours[: len(published)] if "_first" in key else ours
        return deviation("encoders", key, ours, published, TOLERANCES["encoders"])
    if name == "t_va" and one.mode not in CROSS_ENCODED:
        # published, what a clip lacks enters the mean as zeros, which halves it; here the rest stands alone
        alone = one.inputs.video_mask.any(1) != one.inputs.audio_mask.any(1)
        published = published * (1 + alone.float())
    return deviation("similarities", key, one.similarity(name), published, TOLERANCES["similarities"])


def _projected(one: Encoded) -> Tensor:
    """(B * T, Q, D) of every position of the audio transformer."""
    return one.model.audio.ln_post(one.audio_hidden) @ one.model.audio.proj
