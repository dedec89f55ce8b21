"""Stage `corpus`: the stamp package in, StampScenes out.

Out, under `data/corpora/stampscenes/`:
    pretraining/annotations/stampscenes.json a list of {clip_id, video, split, text, audio_type}
    pretraining/videos/*.mp4
    captions/annotations/MSRVTT_data.json   MSR-VTT's schema
    captions/videos/*.mp4
    labels.json                             what is seen, heard and said in each clip, for the probe
    queries.json                            what people ask for in val and test, and all clips that are right
"""

import multiprocessing
import os
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
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
from clip4vla.utils.progress import track

DESTINATION = Path("data/corpora/stampscenes")
SAMPLE_RATE = 16_000
PICTURE_SHARE = 0.9
"""Largest side of a picture, of the frame's."""
SAME_SOUND = 0.6
"""Sounds that correlate more than this are recordings of one."""
MSRVTT_SPLIT = {"train": "train", "val": "validate", "test": "test"}

_worker: dict[str, Any] = {}


def compose(deb: Path, config: StampScenesConfig, destination: Path) -> None:
    """Compose the corpus from the package at `deb`.

    Raises:
        ValueError: the package is unreadable or has too few stamps for `config`.
    """
    stamps, sounding = choose_stamps(deb, config)
    pretraining = pretraining_scenes(config, len(stamps), sounding)
    captioned = caption_scenes(config, len(stamps), sounding)
    with atomic_directory(destination) as directory:
        for part, scenes in (("pretraining", pretraining), ("captions", captioned)):
            _render_all(scenes, stamps, config, directory / part / "videos")
        write_annotations(directory, stamps, pretraining, captioned, config.seed)


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


def _render_all(scenes: list[Scene], stamps: list[Stamp], config: StampScenesConfig, videos: Path) -> None:
    videos.mkdir(parents=True)
    with ProcessPoolExecutor(
        os.cpu_count(), multiprocessing.get_context("spawn"), _start_worker, (stamps, config, videos)
    ) as pool:
        for _ in track(pool.map(_render, scenes, chunksize=16), len(scenes), "clips"):
            pass


def _start_worker(stamps: list[Stamp], config: StampScenesConfig, videos: Path) -> None:
    _worker.update(stamps=stamps, config=config, videos=videos)


def _render(scene: Scene) -> None:
    stamps, config, videos = _worker["stamps"], _worker["config"], _worker["videos"]
    rng = np.random.default_rng((config.seed, 4, *scene.clip_id.encode()))
    frames = render_frames(stamps[scene.seen], config, rng)
    audio = None if scene.soundtrack == "none" else render_audio(scene, stamps, config, SAMPLE_RATE, rng)
    encode(videos / f"{scene.clip_id}.mp4", frames, config.fps, audio, SAMPLE_RATE)


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
    videos = [_msrvtt_video(scene) for scene in captioned]
    pairs = [(scene.clip_id, caption) for scene in captioned for caption in captions(scene, labels, spoken, seed)]
    sentences = [{"caption": c, "video_id": clip_id, "sen_id": index} for index, (clip_id, c) in enumerate(pairs)]
    write_json(directory / "captions/annotations/MSRVTT_data.json", {"videos": videos, "sentences": sentences})
    write_json(directory / "labels.json", _labels(stamps, captioned))
    write_json(directory / "queries.json", queries(captioned, labels, spoken, seed))


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
