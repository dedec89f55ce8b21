"""Stage `corpus`: the stamp package in, StampScenes out.

Out, under `data/corpora/stampscenes/`:
    pretraining/annotations/stampscenes.json a list of {clip_id, video, split, text, audio_type}
    pretraining/videos/*.mp4
    captions/annotations/MSRVTT_data.json   MSR-VTT's schema
    captions/videos/*.mp4
    labels.json                             what is seen, heard and said in each clip, for the probe
    queries.json                            what people ask for in val and test, and all clips that are right
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clip4vla.config import StampScenesConfig
from clip4vla.corpora.stampscenes.phrasings import Role
from clip4vla.corpora.stampscenes.queries import queries
from clip4vla.corpora.stampscenes.render import render_audio, render_frames
from clip4vla.corpora.stampscenes.scenes import (
    Scene,
    caption_scenes,
    captions,
    pretraining_scenes,
    pretraining_text,
    sound_text,
    words_of,
)
from clip4vla.corpora.stampscenes.stamps import Stamp, decode_stamp, likeness, read_stamps
from clip4vla.media.encode import encode
from clip4vla.utils.files import atomic_directory, write_json
from clip4vla.utils.pool import process_pool
from clip4vla.utils.progress import track

DESTINATION = Path("data/corpora/stampscenes")
UNSEEN_DESTINATION = Path("data/corpora/stampscenes-unseen")
"""Of the stage `unseen`, see `unseen.py`."""
SAMPLE_RATE = 16_000
PICTURE_SHARE = 0.9
"""Largest side of a picture, of the frame's."""
SAME_SOUND = 0.6
"""Sounds that correlate more than this are recordings of one."""
MSRVTT_SPLIT = {"train": "train", "val": "validate", "test": "test"}

_worker: dict[str, Any] = {}


@dataclass(frozen=True)
class Job:
    """A clip to render."""

    scene: Scene
    video: Path
    """The file to write."""
    cast: int = 0
    """Which of the casts, the stamps in one rendering or another, plays the scene."""


def compose(deb: Path, clipart_deb: Path, config: StampScenesConfig, destination: Path) -> None:
    """Compose the corpus from the package of stamps at `deb` and, for `training_pictures`, the one of clip art.

    Raises:
        ValueError: a package is unreadable or has too little for `config`, or what renders it isn't installed.
    """
    stamps, sounding = choose_stamps(deb, config)
    pretraining = pretraining_scenes(config, len(stamps), sounding)
    captioned = caption_scenes(config, len(stamps), sounding)
    with atomic_directory(destination) as directory:
        parts = (("pretraining", pretraining), ("captions", captioned))
        jobs = [
            Job(scene, directory / part / "videos" / f"{scene.clip_id}.mp4", cast_of(scene, config))
            for part, scenes in parts
            for scene in scenes
        ]
        render_all(jobs, all_casts(stamps, config, clipart_deb), config)
        write_annotations(directory, stamps, pretraining, captioned, config.seed)


def all_casts(stamps: list[Stamp], config: StampScenesConfig, clipart_deb: Path) -> list[list[Stamp]]:
    """The stamps as the package has them, then in the further renderings of training clips."""
    if not any(config.further_renderings):
        return [stamps]
    try:
        from clip4vla.corpora.stampscenes.casts import training_casts
    except ImportError as error:
        raise ValueError(f"{error}: install it with `pip install 'clip4vla[stampscenes]'`") from error
    side = round(PICTURE_SHARE * config.size)
    return training_casts(stamps, config, clipart_deb, sample_rate=SAMPLE_RATE, picture_side=side)


def cast_of(scene: Scene, config: StampScenesConfig) -> int:
    """Which of `all_casts` plays a scene: the first in val and test; in training voice, sound and picture are drawn."""
    if scene.split != "train":
        return 0
    rng = np.random.default_rng((config.seed, 8, *scene.clip_id.encode()))
    numbers = config.further_renderings
    keeps = rng.random(len(numbers)) < config.own_renderings
    chosen = [
        0 if keep or not number else int(rng.integers(1, number + 1))
        for keep, number in zip(keeps, numbers, strict=True)
    ]
    return int(np.ravel_multi_index(chosen, [number + 1 for number in numbers]))


def choose_stamps(deb: Path, config: StampScenesConfig) -> tuple[list[Stamp], int]:
    """The vocabulary, those with a sound effect first, and how many these are.

    Of several stamps that sound alike (a camel and a dromedary do) the first is taken, so that a sound tells.
    """
    encoded = read_stamps(deb, config.language)
    sounding = [stamp for stamp in encoded if stamp.sound]
    silent = [stamp for stamp in encoded if not stamp.sound]
    np.random.default_rng((config.seed, 0)).shuffle(silent)
    side = round(PICTURE_SHARE * config.size)
    stamps: list[Stamp] = []
    sounds = 0
    for candidate in [*sounding, *silent]:
        if len(stamps) == config.stamps:
            break
        stamp = decode_stamp(candidate, sample_rate=SAMPLE_RATE, picture_side=side)
        if len(stamp.voice) <= config.seconds * SAMPLE_RATE and not _is_heard(stamp, stamps):
            stamps.append(stamp)
            sounds += stamp.sound is not None
    if len(stamps) < config.stamps:
        raise ValueError(f"stampscenes.stamps is {config.stamps}, but the package has {len(stamps)} usable ones")
    return stamps, sounds


def _is_heard(stamp: Stamp, stamps: list[Stamp]) -> bool:
    """Whether one of `stamps` sounds like `stamp`."""
    heard = stamp.sound
    return heard is not None and any(t.sound is not None and likeness(heard, t.sound) > SAME_SOUND for t in stamps)


def render_all(jobs: Sequence[Job], casts: Sequence[list[Stamp]], config: StampScenesConfig) -> None:
    """Render every job by all cores; a clip depends on its scene, its cast and `config` only."""
    for folder in {job.video.parent for job in jobs}:
        folder.mkdir(parents=True)
    with process_pool(os.cpu_count() or 1, _start_worker, (casts, config)) as pool:
        for _ in track(pool.map(_render, jobs, chunksize=16), len(jobs), "clips"):
            pass


def _start_worker(casts: Sequence[list[Stamp]], config: StampScenesConfig) -> None:
    _worker.update(casts=casts, config=config)


def _render(job: Job) -> None:
    scene, stamps, config = job.scene, _worker["casts"][job.cast], _worker["config"]
    rng = np.random.default_rng((config.seed, 4, *scene.clip_id.encode()))
    frames = render_frames(stamps[scene.seen], config, rng)
    audio = None if scene.soundtrack == "none" else render_audio(scene, stamps, config, SAMPLE_RATE, rng)
    encode(job.video, frames, config.fps, audio, SAMPLE_RATE)


def write_annotations(
    directory: Path, stamps: list[Stamp], pretraining: list[Scene], captioned: list[Scene], seed: int
) -> None:
    """Write the annotation files of both corpora and the labels behind them."""
    labels = [stamp.label for stamp in stamps]
    spoken = [stamp.spoken for stamp in stamps]
    rows = []
    for scene in pretraining:
        text = pretraining_text(scene, labels, spoken)
        place = {"clip_id": scene.clip_id, "video": f"{scene.clip_id}.mp4", "split": scene.split}
        rows.append({**place, "text": text.text, "audio_type": text.audio_type})
    write_json(directory / "pretraining/annotations/stampscenes.json", rows)
    write_msrvtt(directory / "captions/annotations", captioned, labels, spoken, seed)
    write_json(directory / "labels.json", _labels(stamps, captioned))
    write_json(directory / "queries.json", queries(captioned, labels, spoken, seed))


def write_msrvtt(
    annotations: Path, scenes: Sequence[Scene], labels: Sequence[str], spoken: Sequence[str], seed: int
) -> None:
    """Write the captions of `scenes` in MSR-VTT's schema."""
    pairs = [(scene.clip_id, caption) for scene in scenes for caption in captions(scene, labels, spoken, seed)]
    sentences = [{"caption": c, "video_id": clip_id, "sen_id": index} for index, (clip_id, c) in enumerate(pairs)]
    videos = [_msrvtt_video(scene) for scene in scenes]
    write_json(annotations / "MSRVTT_data.json", {"videos": videos, "sentences": sentences})


def _msrvtt_video(scene: Scene) -> dict[str, Any]:
    number = int(scene.clip_id.removeprefix("video"))
    return {"video_id": scene.clip_id, "id": number, "split": MSRVTT_SPLIT[scene.split]}


def _labels(stamps: list[Stamp], captioned: list[Scene]) -> dict[str, Any]:
    """The texts a probe chooses among, and the right ones of each caption clip."""
    labels, spoken = [stamp.label for stamp in stamps], [stamp.spoken for stamp in stamps]
    return {
        "sound": [sound_text(stamp.label) for stamp in stamps if stamp.sound is not None],
        "speech": [stamp.spoken for stamp in stamps],
        "clips": {scene.clip_id: _labels_of_clip(words_of(scene.stamps, labels, spoken)) for scene in captioned},
    }


def _labels_of_clip(words: Mapping[Role, str]) -> dict[str, str]:
    """A clip without an audio track has neither `sound` nor `speech`."""
    named = {"seen": words["seen"], "speech": words.get("said")}
    named["sound"] = sound_text(words["heard"]) if "heard" in words else None
    return {kind: text for kind, text in named.items() if text is not None}
