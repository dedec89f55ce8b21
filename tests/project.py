"""A miniature project in a directory of its own: this repository's code and graph, tiny data and towers."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from clip4vla.pipeline.params import resolve
from clip4vla.rehearsal import scratch
from clip4vla.rehearsal.scratch import copy_project, initialise
from clip4vla.rehearsal.stamp_package import write_clipart_package, write_stamp_package

REPOSITORY = Path(__file__).parents[1]

TINY_ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
    "text_cfg": {"context_length": 48, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}

TINY_CONFIG: dict[str, Any] = {
    "stampscenes": {
        "package": "stamps.deb",
        "clipart_package": "clipart.deb",
        "stamps": 8,
        "pretraining_clips": 24,
        "caption_pairs": {"train": 6, "val": 2, "test": 4},
        "pictures_per_pair": {"train": 2, "val": 2, "test": 2},
        "seconds": 1.2,
        "size": 48,
        "fps": 4,
    },
    "clips": {"frames": 2, "size": 36, "workers": 1},
    "audio": {"tiles": 2, "hop": 256},
    "model": {"architecture": "tiny"},
    "pretraining": {"epochs": 1, "batch_size": 8, "micro_batch_size": 8},
    "retrieval": {"epochs": 1, "batch_size": 6, "micro_batch_size": 3, "inference_frames": 2},
    "captioning": {"epochs": 1, "batch_size": 6, "micro_batch_size": 3},
    "ablation": {"arms": {"mean": {"fusion": "mean"}, "experts": {"fusion": "experts"}}, "epochs": 1},
    "trainer": {"cpu_ranks": 1, "loader_workers": 0, "log_every": 1, "checkpoint_every": 1},
    "evaluation": {"bootstrap": 100, "beam_search": {"beam": 2}},
    "gates": {
        "retrieval": {"floors": {"text_to_clip/both/R@1": 0.0}, "never_worse_than_best_modality": 100.0},
        "captioning": {"floors": {"caption/both/CIDEr": 0.0}},
    },
}


def make_project(directory: Path) -> Path:
    """Put code, graph, parameters and packages into `directory`, and initialise git and DVC there."""
    copy_project(REPOSITORY, directory)
    shutil.copytree(REPOSITORY / "flows", directory / "flows", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "prefect.yaml", directory)
    (directory / "clip4vla/model/architectures/tiny.json").write_text(json.dumps(TINY_ARCHITECTURE))
    config = _updated(yaml.safe_load((REPOSITORY / "params.yaml").read_text()), TINY_CONFIG)
    write_config(directory, config)
    resolve(directory)
    write_stamp_package(directory / "stamps.deb")
    write_clipart_package(directory / "clipart.deb")
    initialise(directory)
    return directory


def presets_of_published_corpora() -> list[str]:
    """Names of the presets of this repository that lead to a corpus of others."""

    def has_some(path: Path) -> bool:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        inner = tree.get("preset", [])
        names = [inner] if isinstance(inner, str) else inner
        media = [corpus["media"] for corpus in tree.get("corpora", {}).values() if corpus and "media" in corpus]
        return any(place.startswith("data/raw/") for place in media) or any(
            has_some(path.with_name(f"{name}.yaml")) for name in names
        )

    return sorted(path.stem for path in (REPOSITORY / "presets").glob("*.yaml") if has_some(path))


def read_config(directory: Path) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((directory / "params.yaml").read_text())
    return tree


def write_config(directory: Path, config: dict[str, Any]) -> None:
    (directory / "params.yaml").write_text(yaml.safe_dump(config, sort_keys=False))


def environment() -> dict[str, str]:
    """The environment of a command: this Python first, one thread, nothing of the outer project."""
    return scratch.environment() | {"OMP_NUM_THREADS": "1"}


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Python with `arguments` in the project."""
    return subprocess.run(
        [sys.executable, *arguments], cwd=directory, env=environment(), capture_output=True, text=True, timeout=1200
    )


def _updated(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(tree)
    for key, value in changes.items():
        nested = (
            isinstance(value, dict)
            and isinstance(tree.get(key), dict)
            and key not in {"floors", "caption_pairs", "pictures_per_pair"}
        )
        merged[key] = _updated(tree[key], value) if nested else value
    return merged
