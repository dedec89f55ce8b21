"""The mel filterbank, and the product that skips its zeros."""

import pytest
import torch

from clip4vla.audio.mel import MelBands, mel_filters


def test_filters_have_unit_area_and_rise_in_frequency() -> None:
    filters = mel_filters(40, 1024, 16000)
    area = filters.sum(0) * 16000 / 1024
    torch.testing.assert_close(area[8:], torch.ones(32, dtype=torch.float64), rtol=0.05, atol=0)
    assert (filters.argmax(0).diff() > 0).all()


@pytest.mark.parametrize(("bands", "n_fft"), [(224, 512), (96, 512), (32, 1024), (33, 512), (1, 64), (224, 64)])
def test_bands_are_those_of_the_full_product(bands: int, n_fft: int) -> None:
    filters = mel_filters(bands, n_fft, 16000)
    power = torch.rand(7, n_fft // 2 + 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = torch.full((7, bands), torch.nan, dtype=torch.float64)
    MelBands(filters)(power, filters, out=found)
    torch.testing.assert_close(found, power @ filters, rtol=1e-12, atol=0)
