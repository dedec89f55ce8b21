"""`python -m benchmarks.audio_frontend`: seconds of sound that become log-mel tiles in a second.

Waveforms lie on the device already, as float32 in a batch; tiles are those of ViT-B/32 (224 rows and bands). Mono
needs one transform for its three channels, stereo two. `--librosa` adds what the published code does instead, which is
librosa's spectrogram of each of three channels, clip by clip (`pip install librosa`); set OMP_NUM_THREADS=1 with it, so
that both have one core.
"""

from argparse import ArgumentParser
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.measure import add_device, median_seconds, report
from clip4vla.audio.frontend import LogMel, max_samples
from clip4vla.params import AudioParams

IMAGE_SIZE = 224


def measure(device: torch.device, clips: int, tiles: int, channels: int, repeats: int) -> dict[str, float]:
    """The front end on a batch of clips that fill `tiles` tiles each."""
    params = AudioParams(
        sample_rate=16000,
        n_fft=512,
        hop=None,
        tiles=tiles,
        recipe="masked",
        freq_mask_fraction=0.05,
        time_mask_fraction=0.15,
        mask_width=9,
    )
    front_end = LogMel(params, IMAGE_SIZE).to(device)
    length = max_samples(params, IMAGE_SIZE)
    generator = torch.Generator().manual_seed(0)
    waveform = (0.1 * torch.randn(clips, channels, length, generator=generator)).to(device)
    samples = torch.full((clips,), length, device=device)
    seconds = median_seconds(lambda: front_end(waveform, samples), device, repeats=repeats)
    audio_s = clips * length / params.sample_rate
    speed = audio_s / seconds
    figures = {"ms_per_clip": 1e3 * seconds / clips, "audio_s_per_s": speed}
    return figures if device.type == "cuda" else figures | {"audio_s_per_s_per_core": speed / torch.get_num_threads()}


def measure_librosa(tiles: int, repeats: int) -> dict[str, float]:
    """librosa's log-mel spectrograms of three channels of one clip, not cut into tiles.

    Raises:
        SystemExit: librosa isn't installed.
    """
    try:
        import librosa
    except ModuleNotFoundError as error:
        raise SystemExit(f"{error}; `pip install librosa`") from error
    length = tiles * 224 * 128 - 1
    left, right = 0.1 * np.random.default_rng(0).standard_normal((2, length), dtype=np.float32)

    def spectrograms() -> None:
        for channel in (left, (left + right) / 2, right):
            mel = librosa.feature.melspectrogram(
                y=channel, sr=16000, n_fft=512, hop_length=128, n_mels=IMAGE_SIZE, fmax=8000, pad_mode="constant"
            )
            librosa.power_to_db(mel)

    seconds = median_seconds(spectrograms, torch.device("cpu"), repeats=repeats)
    return {"ms_per_clip": 1e3 * seconds, "audio_s_per_s_per_core": length / 16000 / seconds}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure mono and stereo, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.audio_frontend", description=__doc__)
    add_device(parser)
    parser.add_argument("--clips", type=int, default=32, help="in a batch")
    parser.add_argument("--tiles", type=int, default=6, help="of 1.792 s, a clip")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--librosa", action="store_true", help="measure librosa too")
    settings = parser.parse_args(arguments)
    results = {
        name: measure(settings.device, settings.clips, settings.tiles, channels, settings.repeats)
        for name, channels in (("mono", 1), ("stereo", 2))
    }
    if settings.librosa:
        published = measure_librosa(settings.tiles, settings.repeats)
        for figures in results.values():
            speed = figures.get("audio_s_per_s_per_core", figures["audio_s_per_s"])
            figures["times_librosa"] = speed / published["audio_s_per_s_per_core"]
        results["librosa"] = published
    report("audio_frontend", settings.device, settings, results, ("librosa",))


if __name__ == "__main__":
    main()
