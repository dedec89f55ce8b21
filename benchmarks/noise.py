"""How retrieval degrades: R@1 by kind of query against noise, and against the level of the competing sound.

    python -m benchmarks.noise runs/retrieval --figure docs/images/noise.png

Works on the package, the clips and the queries that `dvc repro` leaves. The sound of every test clip is mixed again, at
one level after another, and replaces the one that the clip has; its picture stays. Two things are varied, the other
one at the levels of params.yaml:

- noise: white, so many decibels below the voice and the sound effect (signal to noise);
- the competing sound: the voice for a query about the sound effect, the effect for a query about a word; so many
  decibels below what is asked for (target to competitor).

Each query is scored by default, where the text weighs the experts, and by one audio expert alone: that of the right
type token, and that of the other one. One JSON line on stdout, see `benchmarks.measure`; figures are per cent.
"""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.measure import report, silence
from clip4vla.clips.dataset import ClipDataset
from clip4vla.config import StampScenesConfig, load_config
from clip4vla.corpora.stampscenes.compose import SAMPLE_RATE, choose_stamps
from clip4vla.corpora.stampscenes.fetch import STAMPS
from clip4vla.corpora.stampscenes.render import render_audio
from clip4vla.corpora.stampscenes.scenes import Scene, caption_scenes
from clip4vla.corpora.stampscenes.stamps import Stamp
from clip4vla.evaluation.queries import QuerySet
from clip4vla.evaluation.retrieval_evaluator import batches
from clip4vla.evaluation.retrieval_metrics import retrieval_scores
from clip4vla.evaluation.scores import BY_QUERY
from clip4vla.inference.embedder import Embedder
from clip4vla.pipeline.evaluate import read_queries
from clip4vla.pipeline.project import find_clips
from clip4vla.reports.figures import LevelCurves, level_figure, save_figure

NOISE_DB = (-10, -5, 0, 5, 10, 15, 20)
COMPETITOR_DB = (-20, -15, -10, -5, 0, 5, 10, 15, 20)
RIGHT_TOKEN = {"heard": "nonverbal", "said": "verbal"}
"""The kinds of query that are about sound, and the type token that each asks for."""
METRIC = "R@1"
Sounds = dict[str, NDArray[np.int16]]
"""(1, S) by clip."""
Curves = dict[str, dict[str, list[float]]]
"""By kind of query and by what it is scored with: R@1 at each level."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Score the model at every level, draw the curves and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.noise", description=main.__doc__)
    parser.add_argument("model", type=Path, help="a model directory with experts")
    parser.add_argument("--figure", type=Path, help="PNG to write")
    parser.add_argument("--seed", type=int, default=0, help="of the mixes")
    chosen = parser.parse_args(arguments)
    with silence():
        config = load_config()
        stamps, sounding = choose_stamps(STAMPS.deb, config.stampscenes)
        scenes = [scene for scene in caption_scenes(config.stampscenes, len(stamps), sounding) if scene.split == "test"]
        mixer = Mixer(stamps, scenes, config.stampscenes, chosen.seed)
        clips = ClipDataset(find_clips(config, "finetuning", "test"))
        scorer = Scorer(Embedder.open(chosen.model), clips, read_queries(config, "test"))
        noise = scorer.curves(mixer.with_noise(level) for level in NOISE_DB)
        competing = {
            kind: scorer.curves(mixer.with_competitor(kind, level) for level in COMPETITOR_DB)[kind]
            for kind in RIGHT_TOKEN
        }
        if chosen.figure:
            panels = [
                LevelCurves("White noise", "signal to noise in dB", NOISE_DB, noise),
                LevelCurves("Competing sound", "target to competing sound in dB", COMPETITOR_DB, competing),
            ]
            save_figure(level_figure(panels, f"{METRIC} in %"), chosen.figure)
    results = {
        "noise": {"signal_to_noise_db": NOISE_DB, METRIC: noise},
        "competing_sound": {"target_to_competitor_db": COMPETITOR_DB, METRIC: competing},
        "queries": {kind: len(rows) for kind, rows in scorer.rows.items()},
    }
    report("noise", scorer.embedder.device, chosen, results)


class Mixer:
    """The sound of scenes, mixed again.

    Args:
        stamps: the vocabulary.
        scenes: those without sound are left out.
        config: levels of what is not varied.
        seed: of the mixes.
    """

    def __init__(self, stamps: list[Stamp], scenes: Sequence[Scene], config: StampScenesConfig, seed: int) -> None:
        self._stamps = stamps
        self._scenes = [scene for scene in scenes if scene.soundtrack != "none"]
        self._config = config
        self._seed = seed

    def with_noise(self, level_db: float) -> Sounds:
        """Noise `level_db` below voice and effect."""
        return self._mix({"noise_db": (-level_db, -level_db)})

    def with_competitor(self, kind: str, level_db: float) -> Sounds:
        """What queries of `kind` don't ask for, voice or effect, `level_db` below what they ask for."""
        voice_db = level_db if kind == "said" else -level_db
        return self._mix({"voice_db": (voice_db, voice_db)})

    def _mix(self, levels: Mapping[str, tuple[float, float]]) -> Sounds:
        config = self._config.model_copy(update=dict(levels))
        sounds = {}
        for scene in self._scenes:
            rng = np.random.default_rng((self._seed, *scene.clip_id.encode()))
            wave = render_audio(scene, self._stamps, config, SAMPLE_RATE, rng)
            sounds[scene.clip_id] = (wave * np.iinfo(np.int16).max).astype(np.int16)[None]
        return sounds


class Scorer:
    """What a model with experts finds among clips whose sound is another.

    Args:
        embedder: the model.
        clips: a test split.
        queries: of that split.

    Raises:
        ValueError: the model lacks an expert of a type token.
    """

    def __init__(self, embedder: Embedder, clips: ClipDataset, queries: QuerySet) -> None:
        self.embedder = embedder
        self.rows = {kind: queries.groups()[f"{BY_QUERY}/{kind}"] for kind in RIGHT_TOKEN}
        self._clips = clips
        self._queries = queries
        self._masks = {token: embedder.expert_mask(token) for token in RIGHT_TOKEN.values()}
        self._vectors = embedder.encode_text(queries.sentences)

    def curves(self, mixes: Iterable[Sounds]) -> Curves:
        """R@1 with each of `mixes`, by kind of query and by what it is scored with."""
        found: Curves = {}
        for sounds in mixes:
            for kind, by_score in self.score(sounds).items():
                for name, value in by_score.items():
                    found.setdefault(kind, {}).setdefault(name, []).append(round(value, 1))
        return found

    def score(self, sounds: Sounds) -> dict[str, dict[str, float]]:
        """R@1 by kind of query and by what it is scored with; a clip that `sounds` lacks is silent."""
        parts = []
        for clips in batches(self._clips, self.embedder.batch_size):
            heard = [replace(clip, audio=sounds.get(clip.clip_id)) for clip in clips]
            parts.append(self.embedder.embed_by_modality(heard)["both"])
        vectors = np.concatenate(parts)
        similarities = {"default": self._vectors @ vectors.T}
        similarities |= {token: (self._vectors * mask) @ vectors.T for token, mask in self._masks.items()}
        found: dict[str, dict[str, float]] = {}
        for kind, right in RIGHT_TOKEN.items():
            (other,) = self._masks.keys() - {right}
            for name, key in (("default", "default"), ("right token", right), ("other token", other)):
                found.setdefault(kind, {})[name] = self._recall(kind, similarities[key])
        return found

    def _recall(self, kind: str, similarity: NDArray[np.float32]) -> float:
        tables = self._queries.tables({"both": similarity}, self._clips.clip_ids, {kind: self.rows[kind]})
        return retrieval_scores(tables[f"{kind}/both"].ranks)[METRIC]


if __name__ == "__main__":
    main()
