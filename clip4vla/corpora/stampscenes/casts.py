"""Other renderings of the vocabulary: further voices, sounds and pictures, of training clips and of unseen ones.

In: the stamps as the package has them. Out: *casts*, the same stamps with something replaced. No voice, variant of a
sound or drawing is both in training clips and in unseen ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip4vla.config import StampScenesConfig
from clip4vla.corpora.stampscenes.pictures import read_training_pictures
from clip4vla.corpora.stampscenes.sounds import vary_sound
from clip4vla.corpora.stampscenes.stamps import Stamp
from clip4vla.corpora.stampscenes.voices import TRAINING_VOICES, voice_casts

Cast = list[Stamp]
"""The vocabulary in one rendering."""
STREAMS = {"unseen": 7, "training": 9}
"""Of the random numbers that variants of sounds are drawn with: those of training are not those of unseen clips."""


def training_casts(
    stamps: Cast, config: StampScenesConfig, clipart_deb: Path, *, sample_rate: int, picture_side: int
) -> list[Cast]:
    """Every combination of voices, sounds and pictures that `config` asks for; the first is `stamps`.

    The last of the three changes fastest, as `numpy.ravel_multi_index` counts.

    Raises:
        ValueError: a package is unreadable or lacks a drawing, or espeak-ng lacks a voice.
    """
    voices, sounds, pictures = [stamps], [stamps], [stamps]
    if config.training_voices:
        voices += voice_casts(stamps, config.language, TRAINING_VOICES[: config.training_voices], sample_rate)
    for variant in range(config.training_sounds):
        sounds.append([replace(s, sound=variant_of(s, variant, config.seed, "training", sample_rate)) for s in stamps])
    if config.training_pictures:
        drawn = read_training_pictures(clipart_deb, [stamp.label for stamp in stamps], picture_side)
        pictures += [with_pictures(stamps, _each(drawn, number)) for number in range(config.training_pictures)]
    return [
        [replace(v, sound=s.sound, picture=p.picture) for v, s, p in zip(*renderings, strict=True)]
        for renderings in product(voices, sounds, pictures)
    ]


def variant_of(
    stamp: Stamp, variant: int, seed: int, clips: Literal["training", "unseen"], sample_rate: int
) -> NDArray[np.float32] | None:
    """The sound (S,) of a stamp, varied in pitch, tempo, room and timbre; None where it has none."""
    if stamp.sound is None:
        return None
    rng = np.random.default_rng((seed, STREAMS[clips], variant, *stamp.label.encode()))
    return vary_sound(stamp.sound, sample_rate, rng)


def with_pictures(stamps: Cast, pictures: Mapping[str, Image.Image]) -> Cast:
    """The stamps with the picture that `pictures` has for their label, or their own."""
    return [replace(stamp, picture=pictures.get(stamp.label, stamp.picture)) for stamp in stamps]


def _each(drawn: Mapping[str, Sequence[Image.Image]], number: int) -> dict[str, Image.Image]:
    """The drawing `number` of each label; where a label has fewer, they take turns."""
    return {label: drawings[number % len(drawings)] for label, drawings in drawn.items()}
