"""Normalised pixels, against the published preprocessing."""

from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor

from clip4vla.model.pixels import PixelNormalizer

REFERENCE = Path(__file__).parents[1] / "data" / "reference"


@pytest.fixture
def normalizer() -> PixelNormalizer:
    return PixelNormalizer(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def square(image: np.ndarray, size: int) -> Tensor:
    """(3, size, size) uint8: the shorter side resized by bicubic interpolation, the middle cut out."""
    picture = Image.fromarray(image)
    factor = size / min(picture.size)
    wide, high = (max(size, int(side * factor)) for side in picture.size)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    cut = picture.resize((wide, high), Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    return torch.from_numpy(np.array(cut)).permute(2, 0, 1)


@pytest.mark.parametrize("name", ["square", "portrait"])
def test_published_pixels(normalizer: PixelNormalizer, name: str) -> None:
    with np.load(REFERENCE / "visual_preproc.npz") as stored:
        image, expected = stored[f"img/{name}"], torch.from_numpy(stored[f"tensor/{name}"])
    torch.testing.assert_close(normalizer(square(image, 64)), expected, rtol=0, atol=1e-5)


def test_pixels_keep_their_precision_in_a_half_precision_model(normalizer: PixelNormalizer) -> None:
    frames = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, -1, -1)
    exact = normalizer(frames)
    assert normalizer.bfloat16()(frames).equal(exact)
