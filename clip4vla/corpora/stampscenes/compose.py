"""Stage `corpus`: the stamp package in, StampScenes out.

Out, under `data/corpora/stampscenes/`:
    pretrain/annotations/stampscenes.json   a list of {clip_id, video, split, text, audio_type}
    pretrain/videos/*.mp4
    captions/annotations/MSRVTT_data.json   MSR-VTT's schema
    captions/videos/*.mp4
    labels.json                             what is seen, heard and said in each clip, for the probe
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from clip4vla.atomic import atomic_directory, write_json
from clip4vla.corpora.stampscenes.fetch import DESTINATION as PACKAGE_DIRECTORY
from clip4vla.corpora.stampscenes.fetch import PACKAGE
from clip4vla.corpora.stampscenes.render import render_audio, render_frames
from clip4vla.corpora.stampscenes.scenes import (
    Scene,
    caption_scenes,
    captions,
    pretraining_scenes,
    pretraining_text,
    sound_text,
)
from clip4vla.corpora.stampscenes.things import Thing, decode_stamp, likeness, read_stamps
from clip4vla.media.encode import encode
from clip4vla.params import StampScenesParams, load_params
from clip4vla.progress import track

DESTINATION = Path("data/corpora/stampscenes")
SAMPLE_RATE = 16_000
PICTURE_SHARE = 0.9
"""Largest side of a picture, of the frame's."""
SAME_SOUND = 0.6
"""Sounds that correlate more than this are recordings of one."""
MSRVTT_SPLIT = {"train": "train", "val": "validate", "test": "test"}

_worker: dict[str, Any] = {}


def compose(deb: Path, params: StampScenesParams, destination: Path) -> None:
    """Compose the corpus from the package at `deb`.

    Raises:
        ValueError: the package is unreadable or has too few things for `params`.
    """
    things, sounding = choose_things(deb, params)
    pretraining = pretraining_scenes(params, len(things), sounding)
    captioned = caption_scenes(params, len(things), sounding)
    with atomic_directory(destination) as directory:
        for part, scenes in (("pretrain", pretraining), ("captions", captioned)):
            _render_all(scenes, things, params, directory / part / "videos")
        write_annotations(directory, things, pretraining, captioned, params.seed)


def choose_things(deb: Path, params: StampScenesParams) -> tuple[list[Thing], int]:
    """The vocabulary, those with a sound effect first, and how many these are.

    Of several things that sound alike (a camel and a dromedary do) the first is taken, so that a sound tells.
    """
    stamps = read_stamps(deb, params.language)
    sounding = [stamp for stamp in stamps if stamp.sound]
    silent = [stamp for stamp in stamps if not stamp.sound]
    np.random.default_rng((params.seed, 0)).shuffle(silent)
    side = round(PICTURE_SHARE * params.size)
    things: list[Thing] = []
    sounds = 0
    for stamp in [*sounding, *silent]:
        if len(things) == params.things:
            break
        thing = decode_stamp(stamp, sample_rate=SAMPLE_RATE, picture_side=side)
        if len(thing.voice) <= params.seconds * SAMPLE_RATE and not _is_heard(thing, things):
            things.append(thing)
            sounds += thing.sound is not None
    if len(things) < params.things:
        raise ValueError(f"stampscenes.things is {params.things}, but the package has {len(things)} usable ones")
    return things, sounds


def _is_heard(thing: Thing, things: list[Thing]) -> bool:
    """Whether one of `things` sounds like `thing`."""
    heard = thing.sound
    return heard is not None and any(t.sound is not None and likeness(heard, t.sound) > SAME_SOUND for t in things)


def _render_all(scenes: list[Scene], things: list[Thing], params: StampScenesParams, videos: Path) -> None:
    videos.mkdir(parents=True)
    with ProcessPoolExecutor(
        os.cpu_count(), multiprocessing.get_context("spawn"), _start_worker, (things, params, videos)
    ) as pool:
        for _ in track(pool.map(_render, scenes, chunksize=16), len(scenes), "clips"):
            pass


def _start_worker(things: list[Thing], params: StampScenesParams, videos: Path) -> None:
    _worker.update(things=things, params=params, videos=videos)


def _render(scene: Scene) -> None:
    things, params, videos = _worker["things"], _worker["params"], _worker["videos"]
    rng = np.random.default_rng((params.seed, 4, *scene.clip_id.encode()))
    frames = render_frames(things[scene.seen], params, rng)
    audio = render_audio(scene, things, params, SAMPLE_RATE, rng)
    encode(videos / f"{scene.clip_id}.mp4", frames, params.fps, audio, SAMPLE_RATE)


def write_annotations(
    directory: Path, things: list[Thing], pretraining: list[Scene], captioned: list[Scene], seed: int
) -> None:
    """Write the annotation files of both corpora and the labels behind them."""
    labels = [thing.label for thing in things]
    spoken = [thing.spoken for thing in things]
    rows = []
    for scene in pretraining:
        text = pretraining_text(scene, labels, spoken)
        place = {"clip_id": scene.clip_id, "video": f"{scene.clip_id}.mp4", "split": scene.split}
        rows.append({**place, "text": text.text, "audio_type": text.audio_type})
    write_json(directory / "pretrain/annotations/stampscenes.json", rows)
    videos = [_msrvtt_video(scene) for scene in captioned]
    pairs = [(scene.clip_id, caption) for scene in captioned for caption in captions(scene, labels, spoken, seed)]
    sentences = [{"caption": c, "video_id": clip_id, "sen_id": index} for index, (clip_id, c) in enumerate(pairs)]
    write_json(directory / "captions/annotations/MSRVTT_data.json", {"videos": videos, "sentences": sentences})
    write_json(directory / "labels.json", _labels(things, captioned))


def _msrvtt_video(scene: Scene) -> dict[str, Any]:
    number = int(scene.clip_id.removeprefix("video"))
    return {"video_id": scene.clip_id, "id": number, "split": MSRVTT_SPLIT[scene.split]}


def _labels(things: list[Thing], captioned: list[Scene]) -> dict[str, Any]:
    """The texts a probe chooses among, and the right ones of each caption clip."""
    return {
        "sound": [sound_text(thing.label) for thing in things if thing.sound is not None],
        "speech": [thing.spoken for thing in things],
        "clips": {
            scene.clip_id: {
                "seen": things[scene.seen].label,
                "sound": sound_text(things[scene.heard].label),
                "speech": things[scene.said].spoken,
            }
            for scene in captioned
        },
    }


if __name__ == "__main__":
    compose(PACKAGE_DIRECTORY / f"{PACKAGE}.deb", load_params().stampscenes, DESTINATION)
