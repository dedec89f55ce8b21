"""CLIP extended with hearing: one embedding space for video, language and audio.

model = clip4vla.load("runs/retrieval")          # or "models:/clip4vla@champion"
texts = model.encode_text(["the sound of a bell"])
media = model.encode_media(["bell.mp4", "street.wav"])
scores = texts @ media.T
"""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip4vla.inference.embedder import Embedder

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

REGISTRY_PREFIX = "models:/"


def load(source: str | Path) -> "Embedder":
    """A trained model by its directory, or by its name in the registry.

    Args:
        source: a model directory such as `runs/retrieval`, or `models:/NAME@champion` or `models:/NAME/VERSION` of the
            registry of the project in the working directory (or of MLFLOW_TRACKING_URI).

    Returns:
        An object with `encode_text(sentences)` and `encode_media(paths)`, which return float32 arrays (N, D) whose
        inner product is the score that retrieval ranks by, and `caption(paths)`, a list of N sentences, where the
        model has a caption decoder.

    Raises:
        ValueError: there is no such model; the message says what is missing.
    """
    from clip4vla.inference.embedder import Embedder

    if not str(source).startswith(REGISTRY_PREFIX):
        return Embedder.open(Path(source))
    from clip4vla.registry.registry import load_version

    return load_version(Path.cwd(), str(source).removeprefix(REGISTRY_PREFIX))
