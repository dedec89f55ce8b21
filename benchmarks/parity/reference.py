"""The files of a reference directory, read without any interpretation of their content.

In: a directory with published numbers. Out: its arrays, facts and checkpoint by name; nothing for a file that isn't
there, since numbers of other weights, for instance, come without new metrics.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

CHECKPOINT = "pytorch_model.bin.pretrain.0"
FILES = (
    "audio_frontend.npz",
    CHECKPOINT,
    "model.npz",
    "metrics.npz",
    "optim.npz",
    "visual_preproc.npz",
    "text.json",
    "facts.json",
    "vitb32_state_dict_index.json",
)
UNREADABLE = (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error)


class Arrays(dict[str, Tensor]):
    """The arrays of a file by name; access to one that isn't there is a ValueError with its name."""

    def __init__(self, file: str, arrays: Mapping[str, Tensor]) -> None:
        super().__init__(arrays)
        self.file = file

    def replaced(self, changes: Mapping[str, Tensor]) -> "Arrays":
        """These arrays with `changes`."""
        return Arrays(self.file, {**self, **changes})

    def __missing__(self, key: str) -> Tensor:
        raise ValueError(f"{self.file} lacks {key}, which is needed to check other arrays in it")


@dataclass(frozen=True)
class Reference:
    """A directory of published numbers, its files read when they are first used.

    Raises:
        ValueError: none of the files is there, the checkpoint of the numbers is missing, or a file can't be read.
    """

    directory: Path

    def __post_init__(self) -> None:
        if not self.directory.is_dir():
            raise ValueError(f"there is no directory {self.directory}")
        if len(self.missing) == len(FILES):
            raise ValueError(f"{self.directory} has none of {', '.join(FILES)}")
        if CHECKPOINT in self.missing and "model.npz" not in self.missing:
            raise ValueError(f"{self.directory} lacks {CHECKPOINT}, which made the numbers in model.npz")

    @property
    def missing(self) -> list[str]:
        """The files that aren't there."""
        return [name for name in FILES if not (self.directory / name).is_file()]

    @cached_property
    def audio(self) -> Arrays:
        """Waveforms and the outputs of the front end."""
        return self._numbers("audio_frontend.npz")

    @cached_property
    def model(self) -> Arrays:
        """Inputs and outputs of the model."""
        return self._numbers("model.npz")

    @cached_property
    def metrics(self) -> Arrays:
        """Similarity matrices and ranks."""
        return self._numbers("metrics.npz")

    @cached_property
    def schedule(self) -> Arrays:
        """The learning rate's factor by progress."""
        return self._numbers("optim.npz")

    @cached_property
    def images(self) -> Arrays:
        """Images and the outputs of the image transform."""
        return self._numbers("visual_preproc.npz")

    @cached_property
    def names(self) -> dict[str, list[str]]:
        """The lists of names in model.npz."""
        return {key: value.tolist() for key, value in self._arrays("model.npz").items() if value.dtype.kind == "U"}

    @cached_property
    def text(self) -> dict[str, Any]:
        """Sentences and their token ids."""
        return self._tree("text.json")

    @cached_property
    def facts(self) -> dict[str, Any]:
        """Numbers that are no arrays."""
        return self._tree("facts.json")

    @cached_property
    def full_size(self) -> dict[str, Any]:
        """Every key, shape and number format of a ViT-B/32 checkpoint, by kind of checkpoint."""
        return self._tree("vitb32_state_dict_index.json")

    @cached_property
    def checkpoint(self) -> dict[str, Tensor]:
        """The pretraining checkpoint, tensor for tensor as it was saved."""
        if CHECKPOINT in self.missing:
            return {}
        path = self.directory / CHECKPOINT
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            # what isn't a checkpoint fails in as many ways as there are bytes, some with pages of advice
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(f"{path} can't be read as a checkpoint: {reason}") from error
        if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
            raise ValueError(f"{path} isn't a dict of tensors")
        return dict(state)

    def _numbers(self, name: str) -> Arrays:
        arrays = {key: value for key, value in self._arrays(name).items() if value.dtype.kind in "biuf"}
        return Arrays(name, {key: torch.from_numpy(np.array(value)) for key, value in arrays.items()})

    def _arrays(self, name: str) -> dict[str, np.ndarray]:
        if name in self.missing:
            return {}
        try:
            with np.load(self.directory / name) as stored:
                return {key: stored[key] for key in stored.files}
        except UNREADABLE as error:
            raise ValueError(f"{self.directory / name} can't be read: {error}") from error

    def _tree(self, name: str) -> dict[str, Any]:
        if name in self.missing:
            return {}
        try:
            tree = json.loads((self.directory / name).read_text(encoding="utf-8"))
        except UNREADABLE as error:
            raise ValueError(f"{self.directory / name} can't be read: {error}") from error
        if not isinstance(tree, dict):
            raise ValueError(f"{self.directory / name} isn't an object with names")
        return tree
