"""Ten files of one's own, as docs/data.md tells it: a folder and a table in, a judged model out, no StampScenes."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clip4vla.clips.dataset import ClipDataset
from clip4vla.corpora.manifest import read_manifest
from clip4vla.pipeline.params import resolve
from tests.markup import parse
from tests.media.sample import tone, write_media
from tests.project import make_project, read_config, run, write_config

FOLDER = {"adapter": "folder", "annotations": "data/raw/mine", "media": "data/raw/mine/media"}


def write_ten(media: Path) -> list[str]:
    """Media of many kinds; their paths."""
    (media / "sub folder").mkdir(parents=True)
    stereo = np.stack([tone(48000), tone(48000, hertz=220)])
    write_media(media / "one.mp4")
    write_media(media / "sub folder/two.mp4", layout="stereo", wave=tone(16000))
    write_media(media / "three.webm", "libvpx-vp9", "libopus", rate=48000)
    write_media(media / "four.mkv", "libx264", "aac", rate=48000, layout="stereo", wave=stereo)
    write_media(media / "five.avi", "mpeg4", "libmp3lame")
    write_media(media / "six.mp4", "libx264", None)
    write_media(media / "seven.wav", None, "pcm_s16le")
    write_media(media / "eight.flac", None, "flac")
    write_media(media / "nine.mp4", size=(48, 64))
    (media / "ten.mp4").write_bytes((media / "one.mp4").read_bytes()[:2000])
    return sorted(path.relative_to(media).as_posix() for path in media.rglob("*.*"))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = make_project(tmp_path_factory.mktemp("own"))
    names = write_ten(directory / "data/raw/mine/media")
    assert len(names) == 10
    table = "\n".join(["path,text", *(f'{name},"this is {name}, and how it sounds"' for name in names)])
    (directory / "data/raw/mine/texts.csv").write_text(table)
    config = read_config(directory)
    config["corpora"] = {"mine-pretraining": FOLDER | {"role": "pretraining"}, "mine": FOLDER | {"role": "finetuning"}}
    config["preset"] = "own-captions"
    write_config(directory, config)
    resolve(directory)
    return directory


@pytest.fixture(scope="module")
def stopped(project: Path) -> str:
    """What `dvc repro promote@retrieval` says while one of the files is broken."""
    done = run(project, "-m", "dvc", "repro", "promote@retrieval")
    assert done.returncode == 255, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def said(project: Path, stopped: str) -> str:  # noqa: ARG001
    """What it says when the broken file has been left out."""
    table = project / "data/raw/mine/texts.csv"
    table.write_text("\n".join(line for line in table.read_text().splitlines() if not line.startswith("ten.mp4")))
    done = run(project, "-m", "dvc", "repro", "promote@retrieval")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_it_stops_at_the_file_that_is_broken_and_names_it(stopped: str) -> None:
    assert "9 accepted, 1 rejected (corrupt 1)\n  ten.mp4: corrupt, " in stopped
    assert "leave them out of the annotations, or raise clips.max_reject_fraction" in stopped
    assert "clip4vla pretrain" not in stopped


@pytest.mark.usefixtures("said")
def test_every_file_left_is_a_clip_and_some_are_kept_to_validate_and_to_test(project: Path) -> None:
    records = list(read_manifest(project / "data/manifests/mine/manifest.parquet"))
    assert Counter(record.split for record in records).keys() == {"train", "val", "test"}
    stored = sorted((project / "data/clips/finetuning/mine").glob("*.lance"))
    assert sorted(ClipDataset(stored).clip_ids) == sorted(record.clip_id for record in records)
    assert len(records) == 9


def test_stampscenes_is_left_alone(said: str) -> None:
    assert "stampscenes" not in said


@pytest.mark.usefixtures("said")
def test_it_ends_with_a_model_that_was_tested_and_a_champion(project: Path) -> None:
    decision = json.loads((project / "metrics/promotion-retrieval.json").read_text())
    assert decision["promote"] is True
    scores = json.loads((project / "metrics/retrieval.json").read_text())
    assert 0 <= scores["text_to_clip"]["both"]["R@1"] <= 100
    assert scores["n_clips"] >= 1
    assert (project / "runs/retrieval/model.safetensors").is_file()
    report = parse((project / "runs/evaluations/retrieval/report.html").read_text(encoding="utf-8"))
    assert len(report.all("article")) >= 1
