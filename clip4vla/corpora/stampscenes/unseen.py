"""Stage `unseen`: test clips of StampScenes in which one thing was never in training: voice, sound or picture.

In: both packages. Out, under `data/corpora/stampscenes-unseen/`:
    {voices,sounds,pictures}/annotations/MSRVTT_data.json   MSR-VTT's schema
    {voices,sounds,pictures}/videos/*.mp4

A clip has the id, the captions and everything else of the test clip that it stands for; only the voice, the sound or
the picture is another. So the difference of two scores is what that one thing does.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip4vla.config import StampScenesConfig
from clip4vla.corpora.stampscenes.casts import Cast, variant_of, with_pictures
from clip4vla.corpora.stampscenes.compose import (
    PICTURE_SHARE,
    SAME_SOUND,
    SAMPLE_RATE,
    Job,
    choose_stamps,
    render_all,
    write_msrvtt,
)
from clip4vla.corpora.stampscenes.pictures import read_unseen_pictures
from clip4vla.corpora.stampscenes.scenes import Scene, caption_scenes
from clip4vla.corpora.stampscenes.stamps import Stamp, likeness
from clip4vla.corpora.stampscenes.voices import TEST_VOICES, voice_casts
from clip4vla.utils.files import atomic_directory

SOUND_VARIANTS = 2
"""Variants of each sound; a clip has one of them."""


def compose_unseen(stamps_deb: Path, clipart_deb: Path, config: StampScenesConfig, destination: Path) -> None:
    """Compose the three parts.

    Raises:
        ValueError: a package is unreadable, lacks what is needed, or shows none of what the test clips show.
    """
    stamps, sounding = choose_stamps(stamps_deb, config)
    test = [scene for scene in caption_scenes(config, len(stamps), sounding) if scene.split == "test"]
    heard = [scene for scene in test if scene.soundtrack != "none"]
    pictures = read_unseen_pictures(clipart_deb, [stamp.label for stamp in stamps], round(PICTURE_SHARE * config.size))
    shown = [scene for scene in test if stamps[scene.seen].label in pictures]
    parts: dict[str, tuple[list[Scene], list[Cast]]] = {
        "voices": (heard, voice_casts(stamps, config.language, TEST_VOICES, SAMPLE_RATE)),
        "sounds": (heard, _sound_casts(stamps, config.seed)),
        "pictures": (shown, [with_pictures(stamps, pictures)]),
    }
    labels, spoken = [stamp.label for stamp in stamps], [stamp.spoken for stamp in stamps]
    with atomic_directory(destination) as directory:
        jobs: list[Job] = []
        casts: list[Cast] = []
        for part, (scenes, part_casts) in parts.items():
            if not scenes:
                raise ValueError(f"there are no other {part} of what the test clips of StampScenes have")
            jobs += _jobs(scenes, directory / part / "videos", len(casts), len(part_casts))
            casts += part_casts
            write_msrvtt(directory / part / "annotations", scenes, labels, spoken, config.seed)
        render_all(jobs, casts, config)


def _jobs(scenes: Sequence[Scene], videos: Path, first_cast: int, number: int) -> list[Job]:
    """The scenes, each with one of `number` casts from `first_cast` on, in turn."""
    return [
        Job(scene, videos / f"{scene.clip_id}.mp4", first_cast + index % number) for index, scene in enumerate(scenes)
    ]


def _sound_casts(stamps: Sequence[Stamp], seed: int) -> list[Cast]:
    """The vocabulary with variants of its sounds, or with second recordings where the package has them."""
    return [
        [replace(stamp, sound=_other_sound(stamp, variant, seed)) for stamp in stamps]
        for variant in range(SOUND_VARIANTS)
    ]


def _other_sound(stamp: Stamp, variant: int, seed: int) -> NDArray[np.float32] | None:
    if stamp.sound is None:
        return None
    second = [sound for sound in stamp.other_sounds if likeness(sound, stamp.sound) <= SAME_SOUND]
    return second[variant % len(second)] if second else variant_of(stamp, variant, seed, "unseen", SAMPLE_RATE)
