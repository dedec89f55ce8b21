"""A model as MLflow stores it: the run result, the code that serves it, and what that requires.

In: the directory of a run result, and how the model reads media. Out: a directory that `mlflow models serve` serves,
and what was put into one.
"""

from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

import clip4vla
from clip4vla.config import BeamSearchConfig, InferenceConfig
from clip4vla.inference.drift import REFERENCE_FILE
from clip4vla.records import CONFIG_FILE, RUN_FILE, WEIGHTS_FILE
from clip4vla.utils.hashing import hash_files

PACKAGE = Path(clip4vla.__file__).parent

REQUIREMENTS = (
    *("mlflow", "torch", "torchvision", "torchaudio", "open_clip_torch", "ftfy", "regex", "safetensors"),
    *("prometheus_client", "av", "numpy", "pandas", "pillow", "pyarrow", "pydantic", "pyyaml"),
)
"""What serving needs; each is pinned to the release that is installed when a version is registered."""

RUN_RESULT = "artifacts"
FETCHED = ("MLmodel", RUN_RESULT)
"""Of a stored model, what says how it reads media, and the run result; not the code that serves it, a hundred files."""


def content_hash(run_directory: Path) -> str:
    """SHA-256 of the model in `run_directory`: the same weights and config are the same model.

    Raises:
        ValueError: a file of the run result is missing.
    """
    for file in (WEIGHTS_FILE, CONFIG_FILE, RUN_FILE):
        if not (run_directory / file).is_file():
            raise ValueError(f"{run_directory} is no run result: {file} is missing")
    return hash_files([run_directory / WEIGHTS_FILE, run_directory / CONFIG_FILE])


def inference_of(run_directory: Path, beam_search: BeamSearchConfig | None) -> InferenceConfig:
    """How the model in `run_directory` reads media and texts, and how it generates captions.

    Args:
        run_directory: a run result.
        beam_search: in place of what it was trained with, where given.

    Raises:
        ValueError: the run result does not record it.
    """
    from clip4vla.model.pretrained import read_inference_config

    inference = read_inference_config(run_directory)
    if inference is None:
        raise ValueError(
            f"config.json in {run_directory} does not record how the model reads media (an earlier version wrote it): "
            "train it again"
        )
    return inference if beam_search is None else inference.with_beam_search(beam_search)


def read_version_inference(run_directory: Path) -> InferenceConfig:
    """How the model that `Registry.fetch` put into `run_directory` reads media and texts."""
    from mlflow.models import Model

    stored = Model.load(str(run_directory.parent))
    return InferenceConfig.model_validate(stored.flavors["python_function"]["config"])


def save_pyfunc(
    path: Path,
    run_directory: Path,
    inference: InferenceConfig,
    model_id: str | None = None,
    evaluation: Path | None = None,
) -> None:
    """Write the run result to `path` as an MLflow model that serves itself: code, weights, requirements.

    The `reference.json` in `evaluation` goes along, where there is one.
    """
    import mlflow
    from mlflow.models import Model

    files = [run_directory / file for file in (WEIGHTS_FILE, CONFIG_FILE, RUN_FILE)]
    if evaluation is not None and (evaluation / REFERENCE_FILE).is_file():
        files.append(evaluation / REFERENCE_FILE)
    mlflow.pyfunc.save_model(
        path=str(path),
        python_model=str(PACKAGE / "inference/pyfunc.py"),
        code_paths=[str(PACKAGE)],
        artifacts={file.name: str(file) for file in files},
        model_config=inference.model_dump(mode="json"),
        pip_requirements=[f"{package}=={installed_version(package)}" for package in REQUIREMENTS],
        mlflow_model=Model(model_id=model_id),
        signature=_signature(captions=inference.generation is not None),
        input_example=_input_example(captions=inference.generation is not None),
    )


def _signature(captions: bool) -> Any:
    """Of the outputs. With one of the inputs, MLflow would drop unknown columns before the model can refuse them."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import Array, DataType

    embedding = ColSpec(Array(DataType.double), "embedding", required=False)
    caption, error = (ColSpec(DataType.string, name, required=False) for name in ("caption", "error"))
    return ModelSignature(outputs=Schema([caption if captions else embedding, error]))


def _input_example(captions: bool) -> Any:
    import pandas as pd  # type: ignore[import-untyped]

    if captions:
        return pd.DataFrame({"media": ["dog.mp4"]})
    return pd.DataFrame({"text": ["a dog barks", None], "media": [None, "dog.mp4"]})
