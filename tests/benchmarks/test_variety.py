"""Pretraining clips with further renderings, and what is counted as recognised, on the miniature packages."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.variety import Examiner, compose_pretraining, curves_of, main, panels
from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.format import Clip
from clip4vla.clips.ingest import ingest
from clip4vla.config import Config, load_config
from clip4vla.corpora.base import read_corpus
from clip4vla.corpora.manifest import MANIFEST_FILE, write_manifest
from clip4vla.corpora.stampscenes.compose import DESTINATION, UNSEEN_DESTINATION, compose
from clip4vla.corpora.stampscenes.fetch import CLIPART, STAMPS
from clip4vla.corpora.stampscenes.unseen import compose_unseen
from clip4vla.pipeline.project import clips_directory
from clip4vla.rehearsal.stamp_package import write_clipart_package, write_stamp_package
from clip4vla.reports.figures import level_figure
from tests.project import REPOSITORY, TINY_CONFIG


@pytest.fixture
def config() -> Config:
    config = load_config(REPOSITORY / "params.yaml", preset="unseen")
    tiny = {name: getattr(config, name).model_copy(update=TINY_CONFIG[name]) for name in ("stampscenes", "clips")}
    return config.model_copy(update=tiny)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project that has the two packages alone."""
    monkeypatch.chdir(tmp_path)
    for package, write in ((STAMPS, write_stamp_package), (CLIPART, write_clipart_package)):
        package.destination.mkdir(parents=True)
        write(package.deb)


@pytest.mark.usefixtures("packages")
def test_pretraining_clips_are_stored_for_training(config: Config) -> None:
    further = config.stampscenes.model_copy(update={"training_sounds": 2, "training_pictures": 1})
    compose_pretraining(config.model_copy(update={"stampscenes": further}), Path("out"))
    clips = ClipDataset([Path("out/lance/train.lance")])
    assert len(clips) == 24
    assert all(clip.audio is not None and clip.frames and clip.texts for clip in clips.take(range(24)))


class Oracle:
    """Knows the labels of all clips but those of `wrong` ones, whose vector is that of no choice."""

    batch_size = 4

    def __init__(self, wrong: str) -> None:
        labels = json.loads((DESTINATION / "labels.json").read_text(encoding="utf-8"))["clips"]
        self._named = {
            clip: {"verbal": has.get("speech"), "nonverbal": has.get("sound")} for clip, has in labels.items()
        }
        spoken = {has["seen"]: has["seen"].replace("a ", "un ", 1) + "o" for has in labels.values()}
        self._shown = {clip: spoken[has["seen"]] for clip, has in labels.items()}
        self._wrong = wrong
        self._texts: list[str] = []

    def encode_text(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        self._texts = list(sentences)
        return np.eye(len(sentences), dtype=np.float32)

    def embed_audio(self, clips: Sequence[Clip], token: str) -> NDArray[np.float32]:
        return self._vectors([self._named[clip.clip_id][token] for clip in clips], clips)

    def embed_by_modality(self, clips: Sequence[Clip]) -> dict[str, NDArray[np.float32]]:
        return {"video": self._vectors([self._shown[clip.clip_id] for clip in clips], clips)}

    def _vectors(self, texts: Sequence[str | None], clips: Sequence[Clip]) -> NDArray[np.float32]:
        vectors = np.array([[float(text == choice) for choice in self._texts] for text in texts], np.float32)
        for vector, clip in zip(vectors, clips, strict=True):
            if clip.clip_id == self._wrong:
                vector[:] = vector[::-1]
        return vectors


@pytest.mark.usefixtures("packages")
def test_what_is_said_heard_and_shown_is_asked_of_clips_as_they_are_and_unseen(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    compose(STAMPS.deb, CLIPART.deb, config.stampscenes, DESTINATION)
    compose_unseen(STAMPS.deb, CLIPART.deb, config.stampscenes, UNSEEN_DESTINATION)
    for name, corpus in config.corpora.items():
        if corpus.role != "pretraining":
            write_manifest(read_corpus(corpus), Path(corpus.media), Path("manifests") / name)
            manifest = Path("manifests") / name / MANIFEST_FILE
            ingest(manifest, Path(corpus.media), clips_directory(config, name), config.clips, config.audio)
    examiner = Examiner(config)
    spoken = ClipDataset([clips_directory(config, "stampscenes-voices") / "test.lance"]).clip_ids
    drawn = ClipDataset([clips_directory(config, "stampscenes-pictures") / "test.lance"]).clip_ids
    wrong = next(clip for clip in spoken if clip not in drawn)
    monkeypatch.setattr("benchmarks.variety.Embedder.open", lambda _: Oracle(wrong))
    share = 100 * (len(spoken) - 1) / len(spoken)
    assert examiner.mark(Path("model")) == {
        "voices": (share, share),
        "sounds": (share, share),
        "pictures": (100.0, 100.0),
    }
    found = examiner.report(Path("model"))
    assert found["voices"] == {"as they are": round(share, 1), "unseen": round(share, 1)}
    by_drawings = found["pictures by drawings in training"]
    assert sum(group["clips"] for group in by_drawings.values()) == len(drawn)
    assert {group["unseen"] for group in by_drawings.values()} == {100.0}


def test_curves_end_where_stampscenes_has_no_more() -> None:
    marks = [{"voices": (90.0 + n, 10.0 * n), "sounds": (90.0, 50.0), "pictures": (95.0, 5.0 * n)} for n in range(5)]
    curves = curves_of([0, 1, 2, 3, 4], marks)
    assert curves["voices"] == {
        "numbers": [0, 1, 2, 3, 4],
        "as they are": [90, 91, 92, 93, 94],
        "unseen": [0, 10, 20, 30, 40],
    }
    assert curves["pictures"]["numbers"] == [0, 1, 2, 3]
    axes = level_figure(panels(curves), "recognised in %").axes
    assert [each.get_xlabel() for each in axes] == [f"further {kind} in training" for kind in curves]
    assert [len(each.lines) for each in axes] == [2, 2, 2]


def test_models_that_are_there_are_reported_on_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Fake:
        def __init__(self, config: Config) -> None:
            assert config.stampscenes.training_voices

        def report(self, model: Path) -> dict[str, str]:
            return {"asked": model.name}

    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("benchmarks.variety.Examiner", Fake)
    main(["--models", "runs/one", "runs/two"])
    [line] = capsys.readouterr().out.splitlines()
    assert json.loads(line)["results"] == {"runs/one": {"asked": "one"}, "runs/two": {"asked": "two"}}
    with pytest.raises(SystemExit):
        main([])
