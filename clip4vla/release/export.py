"""A registered version as a folder for others.

Out: `model.safetensors` and `config.json`, which `clip4vla.load` opens; `open_clip_config.json`,
`open_clip_model.safetensors` and the tokenizer's files, which open_clip and Transformers open; and `README.md`, the
model card.
"""

import tempfile
from pathlib import Path

from clip4vla.model.open_clip_directory import CONFIG_FILE, save_open_clip
from clip4vla.model.pretrained import load_model, save_model
from clip4vla.registry.registry import Registry
from clip4vla.registry.stored_model import read_version_inference
from clip4vla.release.model_card import CardFacts, model_card
from clip4vla.tracking.records import read_ablation, read_training
from clip4vla.utils.files import atomic_directory

CARD = "README.md"


def export_version(root: Path, name: str, version: str, directory: Path, license: str | None = None) -> None:
    """Write a version of the registry of the project at `root` to `directory`, all of it or nothing.

    Args:
        root: the project's directory.
        name: of the registered model.
        version: of the model.
        directory: a new or empty one, or that of an earlier export, which is replaced.
        license: of the weights, for the model card.

    Raises:
        ValueError: there is no such version, or the directory holds something else.
    """
    _check_replaceable(directory)
    registry = Registry(root)
    record, scores = registry.describe(name, version), registry.scores(name, version)
    with tempfile.TemporaryDirectory() as scratch:
        run_directory = registry.fetch(name, version, Path(scratch))
        model, inference = load_model(run_directory), read_version_inference(run_directory)
    facts = CardFacts(
        version=record,
        training=read_training(root, record.run_id),
        scores=scores,
        ablation=read_ablation(root, scores.test_set),
        model=model.config,
        inference=inference,
        sample_rate=model.audio_config.sample_rate,
        license=license,
    )
    with atomic_directory(directory) as partial:
        save_model(model, partial, inference)
        save_open_clip(model, partial)
        (partial / CARD).write_text(model_card(facts), encoding="utf-8")


def _check_replaceable(directory: Path) -> None:
    if not directory.exists() or (directory / CONFIG_FILE).is_file():
        return
    if not directory.is_dir() or any(directory.iterdir()):
        raise ValueError(f"{directory} holds something else than an earlier export: name a new directory")
