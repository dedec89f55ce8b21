"""A scratch project: the code, graph and parameters of a project, with a preset, and everything made that it reads.

The last preset laid over the others cuts lengths alone: epochs, arms of the ablation, numbers of clips, bounds of the
gates. What a clip and a step are like stays: frames, tiles, sizes, micro-batches, precision, models.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from clip4vla.config import PRESETS, Config, CorpusConfig, load_config, read_yaml, to_yaml
from clip4vla.corpora.stampscenes import compose
from clip4vla.model.towers import find_architecture, find_weights
from clip4vla.pipeline.params import is_composed, resolve
from clip4vla.records import SPLITS, Split
from clip4vla.rehearsal.published import make_corpus, published_corpus
from clip4vla.rehearsal.stamp_package import write_clipart_package, write_stamp_package
from clip4vla.rehearsal.weights import write_random_weights
from clip4vla.training.launch import ranks_here
from clip4vla.training.spec import TrainingName

CUT = "rehearsal-cut"
"""Name of the last preset."""
PARAMS = "params.yaml"
CODE = ("clip4vla", PRESETS)
GRAPH = ("dvc.yaml", ".dvcignore")
STAMPS, CLIPART, WEIGHTS = "made/stamps.deb", "made/clipart.deb", "made/weights.pt"
EXPORTS = "made/exports"
FEWEST_STAMPS = 8
EVALUATION_CLIPS = 2
"""Of val and of test: no figure of the reports is of one clip."""
OUTER = ("DVC_", "GIT_", "MLFLOW_")
"""Beginnings of variables that would lead a command in the scratch project out of it."""


@dataclass(frozen=True)
class ScratchProject:
    """A project in which the graph can run, and what it stands for."""

    root: Path
    wanted: Config
    """The parameters that are rehearsed."""
    config: Config
    """The same, cut."""
    counts: Mapping[Split, int]
    """Clips of each corpus that isn't composed."""
    notes: tuple[str, ...]
    """What differs from the project besides lengths."""

    def make_corpora(self, counts: Mapping[Split, int]) -> list[str]:
        """Write the files of `counts` clips of each corpus that isn't composed; the names of these corpora."""
        made = {name: corpus for name, corpus in self.config.corpora.items() if not is_composed(corpus)}
        for corpus in made.values():
            places = self.root / corpus.annotations, self.root / corpus.media
            make_corpus(corpus.adapter, *places, counts, self.config.captioning.min_words)
        return list(made)


def make_scratch_project(source: Path, root: Path, presets: Sequence[str], clips: int | None = None) -> ScratchProject:
    """Make a scratch project in the empty directory `root`.

    Args:
        source: the project that is rehearsed; nothing in it changes.
        root: an empty directory.
        presets: names of presets in place of those that `params.yaml` names; empty: those.
        clips: training clips of each corpus; None: as few as make a step.

    Raises:
        ValueError: there is no such preset, `source` is not a project, its parameters aren't valid, or an adapter is
            one for which no corpus can be made.
    """
    _check_presets(source, presets)
    wanted = load_config(source / PARAMS, list(presets) or None)
    for corpus in wanted.corpora.values():
        if not is_composed(corpus):
            published_corpus(corpus.adapter)
    counts: dict[Split, int] = {
        "train": max(2, ranks_here(wanted.trainer), clips or 0),
        "val": EVALUATION_CLIPS,
        "test": EVALUATION_CLIPS,
    }
    tree, notes = cut(wanted, counts)
    copy_project(source, root)
    (root / PRESETS / f"{CUT}.yaml").write_text(to_yaml(tree), encoding="utf-8")
    params = {**read_yaml(source / PARAMS), "preset": [*wanted.preset, CUT]}
    (root / PARAMS).write_text(to_yaml(params), encoding="utf-8")
    scratch = ScratchProject(root, wanted, load_config(root / PARAMS), counts, tuple(notes))
    _make_inputs(scratch)
    resolve(root)
    initialise(root)
    return scratch


def _check_presets(source: Path, presets: Sequence[str]) -> None:
    if not (source / PARAMS).is_file() or not all((source / name).exists() for name in (*CODE, GRAPH[0])):
        raise ValueError(f"{source.resolve()} is not a project: it lacks {PARAMS}, dvc.yaml, presets or clip4vla")
    known = ["default", *sorted(path.stem for path in (source / PRESETS).glob("*.yaml"))]
    if unknown := [name for name in presets if name not in known]:
        raise ValueError(f"there is no preset {unknown[0]!r}; there are {', '.join(known)}")


def copy_project(source: Path, root: Path) -> None:
    """Copy code, presets and graph of the project at `source` to `root`: neither parameters nor data."""
    for name in CODE:
        shutil.copytree(source / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in GRAPH:
        if (source / name).is_file():
            shutil.copy(source / name, root)


def initialise(root: Path) -> None:
    """Make `root` a repository of git and DVC that shares nothing with others, DVC's cache neither."""
    dvc = [sys.executable, "-m", "dvc"]
    own = root.resolve() / ".dvc"
    settings = {"core.analytics": "false", "cache.dir": f"{own}/cache", "core.site_cache_dir": f"{own}/site"}
    commands = [["git", "init", "-q"], [*dvc, "init", "-q"]]
    commands += [[*dvc, "config", key, value] for key, value in settings.items()]
    for command in commands:
        done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"`{' '.join(command[-4:])}` failed in {root}: {done.stderr.strip()}")


def environment() -> dict[str, str]:
    """The environment of a command in a scratch project: this Python first, nothing of the outer project."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OUTER)}
    return kept | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def cut(config: Config, counts: Mapping[Split, int]) -> tuple[dict[str, Any], list[str]]:
    """The preset that cuts the lengths of `config`, and sentences on what else it changes."""
    notes: list[str] = []
    arm, *others = config.ablation.arms
    tree: dict[str, Any] = {
        "stampscenes": {
            "package": STAMPS,
            "clipart_package": CLIPART,
            "stamps": FEWEST_STAMPS,
            "pretraining_clips": counts["train"],
            "caption_pairs": dict(counts),
            "pictures_per_pair": dict.fromkeys(SPLITS, 1),
        },
        "corpora": {name: _places(name, corpus) for name, corpus in config.corpora.items() if not is_composed(corpus)},
        "clips": {"workers": 1, "dask": None},
        **{name: {"epochs": 1} for name in get_args(TrainingName)},
        "ablation": {"epochs": 1, "arms": {arm: config.ablation.arms[arm].model_dump(mode="json")}},
        "gates": {task: _open_gate(gate) for task, gate in config.gates},
    }
    if others:
        tree["ablation"]["arms"] |= dict.fromkeys(others)
        notes.append(f"Of the ablation's arms {arm} alone was run; the others are taken to cost the same.")
    if config.model.weights is not None:
        find_weights(config.model.architecture, config.model.weights)
        tree["model"] = {"weights": WEIGHTS}
        notes.append(f"The weights {config.model.weights!r} are random ones in the format of OpenAI's file.")
    for key in ("labels", "queries"):
        path = getattr(config.evaluation, key)
        if path is not None and not Path(path).is_relative_to(compose.DESTINATION):
            tree.setdefault("evaluation", {})[key] = None
            notes.append(f"evaluation.{key} is left out: {path} is of other clips than those made here.")
    return tree, notes


def _places(name: str, corpus: CorpusConfig) -> dict[str, str]:
    """Where the files of a corpus are: as it says, unless that is outside of the project."""
    places = {"annotations": corpus.annotations, "media": corpus.media}
    if any(Path(place).is_absolute() or ".." in Path(place).parts for place in places.values()):
        return {key: f"data/raw/{name}/{key}" for key in places}
    return places


def _open_gate(gate: Any) -> dict[str, Any]:
    """A gate that random weights pass."""
    opened = {"floors": dict.fromkeys(gate.floors), "min_clips": 1, "never_worse_than_best_modality": None}
    return opened | ({} if gate.export_on_promotion is None else {"export_on_promotion": EXPORTS})


def _make_inputs(scratch: ScratchProject) -> None:
    (scratch.root / STAMPS).parent.mkdir()
    if any(is_composed(corpus) for corpus in scratch.config.corpora.values()):
        write_stamp_package(scratch.root / STAMPS, languages=[scratch.config.stampscenes.language])
        write_clipart_package(scratch.root / CLIPART)
    scratch.make_corpora(scratch.counts)
    wanted = scratch.wanted.model
    if wanted.weights is not None:
        write_random_weights(find_architecture(wanted.architecture, wanted.weights), scratch.root / WEIGHTS)
