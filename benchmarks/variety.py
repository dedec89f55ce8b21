"""What variety in training is worth: unseen voices, sounds and pictures recognised, against how many training has.

    python -m benchmarks.variety --preset augmented --numbers 0 1 2 4 8 12 --out runs/variety \\
        --figure docs/images/variety.png
    python -m benchmarks.variety --models runs/presets/*/*/pretraining

Works on the packages and the clips of `preset: unseen` that `dvc repro` leaves. For each number a pretraining corpus is
composed whose clips have so many further voices, variants of each sound and drawings (of these, three at most) beside
the package's own, and a model is pretrained on it by the settings of the preset. It is then asked about test clips, as
they are and in unseen renderings, which word the voice says, which sound is heard and what is shown, among all words or
sounds of the vocabulary. One JSON line on stdout, see `benchmarks.measure`; figures are per cent right. A corpus and a
model that are there are not made again. With `--models` models that are there are asked, each by itself, and about
unseen pictures also by how many drawings of the thing the package has for training.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.measure import report, silence
from clip4vla.clips.dataset import ClipDataset
from clip4vla.clips.ingest import ingest
from clip4vla.config import AudioToken, Config, load_config
from clip4vla.corpora.base import find_adapter
from clip4vla.corpora.manifest import MANIFEST_FILE, write_manifest
from clip4vla.corpora.stampscenes.compose import Job, all_casts, cast_of, choose_stamps, render_all, write_annotations
from clip4vla.corpora.stampscenes.fetch import CLIPART, STAMPS
from clip4vla.corpora.stampscenes.phrasings import Role
from clip4vla.corpora.stampscenes.pictures import training_drawings
from clip4vla.corpora.stampscenes.scenes import caption_scenes, pretraining_scenes, sound_text
from clip4vla.inference.embedder import Embedder
from clip4vla.model.pretrained import WEIGHTS_FILE
from clip4vla.pipeline.project import find_clips, find_unseen_clips
from clip4vla.pipeline.training import make_spec
from clip4vla.reports.figures import LevelCurves, level_figure, save_figure
from clip4vla.training.launch import launch_with_retries
from clip4vla.training.spec import Corpus
from clip4vla.utils.files import atomic_directory

Kind = Literal["voices", "sounds", "pictures"]
ROLE: Mapping[Kind, Role] = {"voices": "said", "sounds": "heard", "pictures": "seen"}
"""What is asked about clips in which a kind of rendering is unseen."""
TOKEN: Mapping[Kind, AudioToken] = {"voices": "verbal", "sounds": "nonverbal"}
"""What the audio tower listens for; pictures are looked at."""
MOST: Mapping[Kind, int] = {"voices": 12, "sounds": 12, "pictures": 3}
"""Further renderings that StampScenes has for training."""
NAMES = ("as they are", "unseen")
Marks = Mapping[Kind, tuple[float, float]]
"""Per cent right: of clips as they are, and of the same clips with the kind of rendering unseen."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Compose, train and ask for every number of renderings, draw the curves and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.variety", description=main.__doc__)
    parser.add_argument("--preset", nargs="+", default=["augmented"], help="presets beside unseen")
    parser.add_argument("--numbers", type=int, nargs="+", default=[0, 1, 2, 4, 8, 12], help="of further renderings")
    parser.add_argument("--seed", type=int, default=0, help="of the trainings")
    parser.add_argument("--out", type=Path, help="directory of corpora and models")
    parser.add_argument("--figure", type=Path, help="PNG to write")
    parser.add_argument("--models", type=Path, nargs="+", help="models that are there: ask these, train none")
    chosen = parser.parse_args(arguments)
    if (chosen.out is None) == (chosen.models is None):
        parser.error("either --out or --models is needed")
    with silence():
        config = load_config(preset=["unseen", *chosen.preset]).model_copy(update={"seed": chosen.seed})
        examiner = Examiner(config)
        if chosen.models:
            results = {str(model): examiner.report(model) for model in chosen.models}
            chosen.models = list(results)
        else:
            marks = [examiner.mark(pretrain(config, number, chosen.out / str(number))) for number in chosen.numbers]
            curves = curves_of(chosen.numbers, marks)
            results = {str(kind): curve for kind, curve in curves.items()}
            if chosen.figure:
                save_figure(level_figure(panels(curves), "recognised in %"), chosen.figure)
    report("variety", torch.device("cpu"), chosen, results)


def pretrain(config: Config, number: int, out: Path) -> Path:
    """The model that is pretrained with `number` further renderings of each kind, below `out`."""
    renderings = {f"training_{kind}": min(number, most) for kind, most in MOST.items()}
    config = config.model_copy(update={"stampscenes": config.stampscenes.model_copy(update=renderings)})
    clips = out / "clips"
    if not clips.is_dir():
        with atomic_directory(clips) as directory:
            compose_pretraining(config, directory)
    spec = make_spec(config, "pretraining", "variety", config.pretraining, "sample", None)
    spec = spec.model_copy(
        update={
            "corpora": (Corpus(clips=clips / "lance/train.lance", weight=1.0),),
            "checkpoints": out / "checkpoints",
            "out": out / "model",
        }
    )
    if not (spec.out / WEIGHTS_FILE).is_file():
        launch_with_retries(spec)
    return spec.out


def compose_pretraining(config: Config, directory: Path) -> None:
    """Compose the pretraining clips of StampScenes and store them in `directory`."""
    stamps, sounding = choose_stamps(STAMPS.deb, config.stampscenes)
    scenes = pretraining_scenes(config.stampscenes, len(stamps), sounding)
    write_annotations(directory, stamps, scenes, [], config.stampscenes.seed)
    videos = directory / "videos"
    jobs = [Job(scene, videos / f"{scene.clip_id}.mp4", cast_of(scene, config.stampscenes)) for scene in scenes]
    render_all(jobs, all_casts(stamps, config.stampscenes, CLIPART.deb), config.stampscenes)
    records = find_adapter("stampscenes")(directory / "pretraining/annotations")
    write_manifest(records, videos, directory / "manifest")
    ingest(directory / "manifest" / MANIFEST_FILE, videos, directory / "lance", config.clips, config.audio)


class Examiner:
    """Asks what is said, heard and seen in test clips, as they are and in unseen renderings.

    Args:
        config: with the preset `unseen`.
    """

    def __init__(self, config: Config) -> None:
        stamps, sounding = choose_stamps(STAMPS.deb, config.stampscenes)
        self._stamps = stamps
        self._scenes = {scene.clip_id: scene for scene in caption_scenes(config.stampscenes, len(stamps), sounding)}
        self._original = ClipDataset(find_clips(config, "finetuning", "test"))
        found = find_unseen_clips(config)
        self._unseen = {kind: ClipDataset([found[f"stampscenes-{kind}"]]) for kind in get_args(Kind)}
        words = [stamp.spoken for stamp in stamps]  # pretraining names what is shown by its spoken word, too
        sounds = [sound_text(stamp.label) for stamp in stamps[:sounding]]
        self._choices: Mapping[Kind, Sequence[str]] = {"voices": words, "sounds": sounds, "pictures": words}

    def mark(self, model: Path) -> Marks:
        """How often `model` is right about each kind."""
        right = self._ask(model)
        return {kind: (100 * float(seen.mean()), 100 * float(unseen.mean())) for kind, (seen, unseen) in right.items()}

    def report(self, model: Path) -> dict[str, Any]:
        """The marks of `model`, and those of unseen pictures by how many drawings of the thing training may have."""
        right = self._ask(model)
        has = training_drawings()
        drawings = np.array([len(has.get(self._label(clip_id), ())) for clip_id in self._unseen["pictures"].clip_ids])
        found: dict[str, Any] = {
            kind: {name: round(100 * float(answers.mean()), 1) for name, answers in zip(NAMES, pair, strict=True)}
            for kind, pair in right.items()
        }
        found["pictures by drawings in training"] = {
            int(number): {
                "clips": int((drawings == number).sum()),
                "unseen": round(100 * float(right["pictures"][1][drawings == number].mean()), 1),
            }
            for number in np.unique(drawings)
        }
        return found

    def _label(self, clip_id: str) -> str:
        return self._stamps[self._scenes[clip_id].seen].label

    def _ask(self, model: Path) -> dict[Kind, tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
        """Whether `model` is right about each clip as it is, and about each with the kind unseen."""
        embedder = Embedder.open(model)
        right = {}
        for kind, unseen in self._unseen.items():
            ids = set(unseen.clip_ids)
            rows = [row for row, clip_id in enumerate(self._original.clip_ids) if clip_id in ids]
            choices = embedder.encode_text(self._choices[kind])
            right[kind] = (
                self._right(embedder, kind, self._original, rows, choices),
                self._right(embedder, kind, unseen, range(len(unseen)), choices),
            )
        return right

    def _right(
        self, embedder: Embedder, kind: Kind, dataset: ClipDataset, rows: Sequence[int], choices: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Of `rows` of `dataset`, which are nearest to the right one of `choices` (N, D)."""
        right = []
        for start in range(0, len(rows), embedder.batch_size):
            clips = dataset.take(rows[start : start + embedder.batch_size])
            token = TOKEN.get(kind)
            vectors = embedder.embed_audio(clips, token) if token else embedder.embed_by_modality(clips)["video"]
            named = [self._scenes[clip.clip_id].stamps[ROLE[kind]] for clip in clips]
            right.append((vectors @ choices.T).argmax(axis=1) == np.array(named))
        return np.concatenate(right)


def curves_of(numbers: Sequence[int], marks: Sequence[Marks]) -> dict[Kind, dict[str, Any]]:
    """By kind, `numbers` as far as StampScenes has so many, and the marks at each."""
    curves: dict[Kind, dict[str, Any]] = {}
    for kind, most in MOST.items():
        kept = [place for place, number in enumerate(numbers) if number <= most]
        seen, unseen = zip(*(marks[place][kind] for place in kept), strict=True)
        curves[kind] = {
            "numbers": [numbers[place] for place in kept],
            **{name: [round(value, 1) for value in values] for name, values in zip(NAMES, (seen, unseen), strict=True)},
        }
    return curves


def panels(curves: Mapping[Kind, Mapping[str, Any]]) -> list[LevelCurves]:
    """The panels of the figure."""
    return [
        LevelCurves(
            f"Unseen {kind}",
            f"further {kind} in training",
            curve["numbers"],
            {ROLE[kind]: {name: values for name, values in curve.items() if name != "numbers"}},
        )
        for kind, curve in curves.items()
    ]


if __name__ == "__main__":
    main()
