"""The front end against the published numbers, and the properties of its own recipe."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clip4vla.audio.augment import SpecMasks, draw_masks
from clip4vla.audio.frontend import LogMel, hop_samples, max_samples, select_tiles, tile_samples
from clip4vla.config import AudioConfig

REFERENCE = Path(__file__).parents[1] / "data" / "reference"
CLIPS = ("mono_0p5", "stereo_0p5", "stereo_3", "mono_exact224", "stereo_silentR_2")
CONFIG = AudioConfig(tiles=3)
SIZE = 32


@pytest.fixture(scope="module")
def arrays() -> dict[str, Tensor]:
    with np.load(REFERENCE / "audio_frontend.npz") as stored:
        return {key: torch.from_numpy(stored[key]) for key in stored.files}


@pytest.fixture(scope="module")
def facts() -> dict:
    return json.loads((REFERENCE / "audio_facts.json").read_text())


def front_end(recipe: str = "masked", size: int = SIZE, **changes: object) -> LogMel:
    return LogMel(CONFIG.model_copy(update={"recipe": recipe, **changes}), size)


def clip(arrays: dict[str, Tensor], name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    wave = arrays[f"{name}/wave"].to(dtype) / 32768
    return wave.T.unsqueeze(0), torch.tensor([len(wave)])


def noise(samples: int, channels: int = 1, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(channels, samples, generator=torch.Generator().manual_seed(seed))


def batch(*waves: Tensor) -> tuple[Tensor, Tensor]:
    longest = max(wave.shape[1] for wave in waves)
    padded = [torch.nn.functional.pad(wave, (0, longest - wave.shape[1])) for wave in waves]
    return torch.stack(padded), torch.tensor([wave.shape[1] for wave in waves])


# published numbers


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize(("dtype", "most", "mean"), [(torch.float64, 5e-7, 5e-8), (torch.float32, 1e-3, 2e-5)])
def test_published_tiles(
    arrays: dict[str, Tensor], facts: dict, name: str, dtype: torch.dtype, most: float, mean: float
) -> None:
    tiles, audio_mask = front_end("published", 224)(*clip(arrays, name, dtype))
    expected = arrays[f"{name}/frames_s4"]
    assert int(audio_mask.sum()) == len(expected) == facts["clips"][name]["model_frames"]
    error = (tiles[0, : len(expected), :, ::4, ::4] - expected).abs()
    assert error.max() < most
    assert error.mean() < mean


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.float32, 1e-2)])
def test_published_log_mel(
    arrays: dict[str, Tensor], facts: dict, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    log_mel, rows = front_end("published", 224).log_mel(*clip(arrays, name, dtype))
    assert int(rows) == facts["clips"][name]["spec_frames"]
    edges = torch.cat([log_mel[0, :, :3], log_mel[0, :, int(rows) - 3 : int(rows)]], dim=1)
    torch.testing.assert_close(edges.double(), arrays[f"{name}/logmel_constant_edges"].double(), rtol=0, atol=tolerance)


def test_published_statistics_undo_the_normalisation(arrays: dict[str, Tensor]) -> None:
    wave, samples = clip(arrays, "stereo_3", torch.float64)
    module = front_end("published", 224)
    tiles, _ = module(wave, samples)
    log_mel, _ = module.log_mel(wave, samples)
    mean, std = (arrays[f"stereo_3/{key}"][0, :, None, None] for key in ("mu", "sigma"))
    torch.testing.assert_close(tiles[0, 0] * std + mean, log_mel[0, :, :224], rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", ["stereo_3", "mono_0p5"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 5e-7), (torch.float32, 1e-3)])
def test_published_spec_augment(
    arrays: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    masks = SpecMasks(
        time=arrays[f"specaug/{name}/time_masks"].unsqueeze(0).long(),
        frequency=arrays[f"specaug/{name}/freq_masks"].unsqueeze(0).long(),
    )
    monkeypatch.setattr("clip4vla.audio.frontend.draw_masks", lambda *_: masks)
    augmented, audio_mask = front_end("published", 224).forward_augmented(*clip(arrays, name, dtype))
    expected = arrays[f"specaug/{name}/frames_s4"]
    got = augmented[0, : int(audio_mask.sum()), :, ::4, ::4]
    torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=tolerance)


def test_published_selections(facts: dict) -> None:
    for case, expected in facts["tile_selection"].items():
        name, most, position = case.split("|")
        count = facts["clips"][name]["model_frames"]
        kept = list(select_tiles(count, int(most.removeprefix("max")), ("head", "tail", "middle")[int(position[-1])]))
        assert kept == [index for index, real in zip(expected["frames"], expected["mask"], strict=True) if real], case


def test_a_long_sound_keeps_the_middle_tiles_of_the_published_selection() -> None:
    wave, samples = batch(noise(7 * tile_samples(CONFIG, SIZE) - 1))
    every, _ = front_end(tiles=7)(wave, samples)
    kept, _ = front_end(tiles=3)(wave, samples)
    torch.testing.assert_close(kept, every[:, select_tiles(7, 3, "middle")])


# geometry


@pytest.mark.parametrize(("size", "hop"), [(224, 128), (64, 448), (32, 896)])
def test_a_tile_lasts_as_long_as_the_published_one(size: int, hop: int) -> None:
    assert hop_samples(CONFIG, size) == hop
    assert tile_samples(CONFIG, size) == 28672


def test_max_samples_fill_the_tiles_and_one_more_spills() -> None:
    most = max_samples(CONFIG, SIZE)
    rows = [int(front_end().log_mel(*batch(noise(n)))[1]) for n in (most, most + 1)]
    assert rows == [CONFIG.tiles * SIZE, CONFIG.tiles * SIZE + 1]


# the masked recipe


def test_padding_stays_out_of_the_statistics() -> None:
    wave, samples = batch(noise(tile_samples(CONFIG, SIZE) // 2))
    tiles, _ = front_end()(wave, samples)
    rows = int(samples) // hop_samples(CONFIG, SIZE) + 1
    inside, beyond = tiles[0, 0, :, :rows], tiles[0, 0, :, rows:]
    torch.testing.assert_close(inside.mean(dim=(1, 2)), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(inside.std(dim=(1, 2), correction=0), torch.ones(3), rtol=1e-5, atol=0)
    assert (beyond == 0).all()


@pytest.mark.parametrize(("recipe", "tiles"), [("masked", 1), ("published", 2)])
def test_an_exact_multiple_gets_an_empty_tile_only_as_published(recipe: str, tiles: int) -> None:
    samples = (SIZE - 1) * hop_samples(CONFIG, SIZE)
    features, audio_mask = front_end(recipe)(*batch(noise(samples)))
    assert int(audio_mask.sum()) == tiles
    assert (features[0, 1] == 0).all()


@pytest.mark.parametrize("recipe", ["masked", "published"])
def test_a_batch_is_the_same_as_one_clip_at_a_time(recipe: str) -> None:
    waves = [noise(n, channels=2, seed=n) for n in (500, 28672, 40000, 70000)]
    together, mask_together = front_end(recipe)(*batch(*waves))
    for row, wave in enumerate(waves):
        alone, mask_alone = front_end(recipe)(*batch(wave))
        torch.testing.assert_close(together[row], alone[0], rtol=0, atol=1e-5)
        assert mask_together[row].equal(mask_alone[0])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("recipe", ["masked", "published"])
def test_a_batch_computed_in_pieces_is_the_same_as_at_once(
    monkeypatch: pytest.MonkeyPatch, recipe: str, channels: int
) -> None:
    monkeypatch.setattr("clip4vla.audio.frontend.find_spec", lambda _: None)  # the kernel has no pieces
    wave, samples = batch(*(noise(n, channels, seed=n) for n in (500, 60000, 120000)))
    found = {}
    for cache in (1, 200_000, 1 << 30):  # a tile at a time, some clips at a time, all at once
        monkeypatch.setattr("clip4vla.audio.frontend.CACHE_BYTES", cache)
        found[cache] = front_end(recipe).forward_views(wave, samples, torch.Generator().manual_seed(0))
    for cache in (1, 200_000):
        for part, expected in zip(found[cache], found[1 << 30], strict=True):
            torch.testing.assert_close(part, expected, rtol=0, atol=1e-5)


def test_samples_beyond_the_end_of_a_clip_change_nothing() -> None:
    wave, samples = batch(noise(30000), noise(50000))
    clean = front_end()(wave, samples)[0]
    wave[0, :, 30000:] = 0.9
    torch.testing.assert_close(front_end()(wave, samples)[0], clean)


@pytest.mark.parametrize("recipe", ["masked", "published"])
def test_no_audio_track_has_no_tile_and_silence_has_a_blank_one(recipe: str) -> None:
    tiles, audio_mask = front_end(recipe)(torch.zeros(2, 1, 28000), torch.tensor([0, 28000]))
    assert not audio_mask[0].any()
    assert audio_mask[1, 0]
    if recipe == "masked":
        assert (tiles == 0).all()


def test_mono_is_three_equal_channels_and_equals_stereo_of_the_same() -> None:
    mono = noise(40000)
    tiles, _ = front_end()(*batch(mono))
    stereo, _ = front_end()(*batch(mono.expand(2, -1)))
    assert tiles[:, :, 0].equal(tiles[:, :, 1])
    assert tiles[:, :, 0].equal(tiles[:, :, 2])
    torch.testing.assert_close(tiles, stereo, rtol=0, atol=1e-5)


def test_channels_are_left_mean_and_right() -> None:
    left, right = noise(40000, seed=1), noise(40000, seed=2)
    stereo, _ = front_end()(*batch(torch.cat([left, right])))
    for channel, wave in enumerate([left, (left + right) / 2, right]):
        torch.testing.assert_close(stereo[:, :, channel], front_end()(*batch(wave))[0][:, :, 0], rtol=0, atol=1e-4)


def test_three_channels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3, 100\)"):
        front_end()(torch.zeros(2, 3, 100), torch.tensor([100, 100]))


def test_half_precision_around_it_changes_nothing() -> None:
    module, (wave, samples) = front_end(), batch(noise(40000))
    expected, _ = module(wave, samples)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.bfloat16()(wave, samples)[0].equal(expected)


# SpecAugment


def test_spec_augment_blanks_full_rows_and_bands_and_leaves_the_rest() -> None:
    wave, samples = batch(noise(3 * tile_samples(CONFIG, SIZE) - 1))
    tiles, augmented, _ = front_end(freq_mask_fraction=0.1).forward_views(
        wave, samples, torch.Generator().manual_seed(1)
    )
    hidden = (augmented == 0) & (tiles != 0)
    assert augmented[~hidden].equal(tiles[~hidden])
    by_row, by_band = hidden[0, :, 0].all(2), hidden[0, :, 0].flatten(0, 1).all(0)
    assert by_row.any()
    assert by_band.any()
    assert hidden[0, :, 0].equal(by_row.unsqueeze(2) | by_band.expand(3, SIZE, -1))


def test_masks_follow_the_published_numbers() -> None:
    rows, generator = torch.tensor([1251, 63]), torch.Generator().manual_seed(0)
    masks = draw_masks(CONFIG, rows, 224, generator)
    assert masks.time.shape == (2, 187, 2)
    assert masks.frequency.shape == (2, 11, 2)
    assert (masks.time[1, 9:, 1] == 0).all()
    assert masks.time[0, :, 1].unique().tolist() == list(range(10))
    assert (masks.time.sum(2) <= rows.unsqueeze(1)).all()
    covered = torch.stack([draw_masks(CONFIG, rows[:1], 224, generator).covered(1251, 224) for _ in range(20)])
    assert abs(covered.float().mean().item() - 0.59) < 0.03


def test_the_masks_are_a_function_of_the_generator() -> None:
    wave, samples = batch(noise(60000), noise(20000))
    augmented = [
        front_end().forward_augmented(wave, samples, torch.Generator().manual_seed(seed))[0] for seed in (3, 3, 4)
    ]
    assert augmented[0].equal(augmented[1])
    assert not augmented[0].equal(augmented[2])


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", ["masked", "published"])
@pytest.mark.parametrize("channels", [1, 2])
def test_a_gpu_computes_the_tiles_of_the_cpu(recipe: str, channels: int) -> None:
    front_end = LogMel(AudioConfig(recipe=recipe, tiles=3), 224)
    waveform = 0.1 * torch.randn(5, channels, 70_000, generator=torch.Generator().manual_seed(0))
    samples = torch.tensor([70_000, 0, 128 * 224, 1, 50_001])
    tiles, views, mask = front_end.forward_views(waveform, samples, torch.Generator().manual_seed(1))
    found = front_end.cuda().forward_views(waveform.cuda(), samples.cuda(), torch.Generator().manual_seed(1))
    assert torch.equal(found[2].cpu(), mask)
    for ours, expected in zip(found, (tiles, views), strict=False):
        torch.testing.assert_close(ours.cpu(), expected, rtol=0, atol=2e-3)
