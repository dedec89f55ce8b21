"""The compiled front end against torch's, which the published numbers hold for, too."""

import hashlib
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clip4vla.audio.augment import draw_masks
from clip4vla.audio.frontend import LogMel
from clip4vla.config import AudioConfig

pytest.importorskip("numba")


def front_end(size: int, **changes: object) -> LogMel:
    return LogMel(AudioConfig(tiles=3).model_copy(update=changes), size)


def batch(*lengths: int, channels: int) -> tuple[Tensor, Tensor]:
    """Noise that ends where a clip does."""
    waveform = torch.zeros(len(lengths), channels, max(lengths))
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(length)
        waveform[row, :, :length] = 0.1 * torch.randn(channels, length, generator=generator)
    return waveform, torch.tensor(lengths)


def without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip4vla.audio.frontend.find_spec", lambda _: None)


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("recipe", ["masked", "published"])
@pytest.mark.parametrize(
    ("size", "n_fft", "hop"),
    [
        pytest.param(32, 512, None, id="published transform"),
        pytest.param(33, 1024, 100, id="neither rows, bands nor hop are whole lanes"),
        pytest.param(50, 64, 128, id="gaps between frames, empty bands"),
        pytest.param(7, 16, 31, id="shortest transform"),
    ],
)
def test_views_are_those_of_torch(
    monkeypatch: pytest.MonkeyPatch, channels: int, recipe: str, size: int, n_fft: int, hop: int | None
) -> None:
    module = front_end(size, recipe=recipe, n_fft=n_fft, hop=hop)
    waveform, samples = batch(500, 0, 28000, 9000, 120000, channels=channels)
    got = module.forward_views(waveform, samples, torch.Generator().manual_seed(0))
    log_mel = module.log_mel(waveform, samples)
    without_numba(monkeypatch)
    plain = front_end(size, recipe=recipe, n_fft=n_fft, hop=hop)
    expected = plain.forward_views(waveform, samples, torch.Generator().manual_seed(0))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    for ours, theirs in zip(log_mel, plain.log_mel(waveform, samples), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


def test_threads_change_nothing() -> None:
    inputs = batch(30000, 500, 50000, channels=2)
    alone = front_end(32)(*inputs)[0]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert front_end(32)(*inputs)[0].equal(alone)
    finally:
        torch.set_num_threads(threads)


def test_a_silent_channel_stays_blank_beside_a_loud_one() -> None:
    waveform, samples = batch(50000, channels=2)
    waveform[:, 1] = 0.0
    tiles, _ = front_end(32)(10 * waveform, samples)
    assert (tiles[:, :, 2] == 0).all()
    assert (tiles[:, 0, 0] != 0).any()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_so(wrong: float) -> None:
    waveform, samples = batch(20000, channels=1)
    waveform[0, 0, 9000] = wrong
    assert not front_end(32)(waveform, samples)[0].isfinite().all()


def test_more_samples_than_there_are_count_as_those() -> None:
    waveform, samples = batch(20000, channels=1)
    tiles, audio_mask = front_end(32)(waveform, samples)
    more = front_end(32)(waveform, samples + 100_000)
    assert more[0].equal(tiles)
    assert more[1].equal(audio_mask)


def test_other_lengths_of_a_transform_are_left_to_torch() -> None:
    waveform, samples = batch(20000, channels=1)
    single, _ = front_end(32, n_fft=400)(waveform, samples)
    double, _ = front_end(32, n_fft=400)(waveform.double(), samples)
    torch.testing.assert_close(single.double(), double, rtol=0, atol=2e-4)


def test_masks_cover_whole_rows_and_bands() -> None:
    masks = draw_masks(AudioConfig(), torch.tensor([300, 40]), 32, torch.Generator().manual_seed(0))
    rows, bands = masks.covered_rows(300), masks.covered_bands(32)
    assert masks.covered(300, 32).equal(rows.unsqueeze(2) | bands.unsqueeze(1))


def test_code_that_numba_keeps_is_compiled_again_when_its_vectors_change() -> None:
    """Numba looks at the time of `kernel.py` alone; so a change of `lanes.py` has to change it."""
    from clip4vla.audio import kernel, lanes

    source = Path(lanes.__file__).read_bytes()
    assert hashlib.sha256(source).hexdigest()[:16] == kernel.LANES_REVISION
