"""`python -m benchmarks.audio_frontend`: seconds of sound that become log-mel tiles in a second.

Waveforms lie on the device already, as float32 in a batch; tiles are those of ViT-B/32 (224 rows and bands). Mono
needs one transform for its three channels, stereo two. Where librosa is installed (`pip install librosa`), it is
measured on the same waveforms as the published code uses it, a log-mel spectrogram of each of three channels, clip by
clip, without the tiles that the front end makes of it: `log_mel_times_librosa` compares like with like, `times_librosa`
the whole front end with librosa's share of the published one. Its log-mel must be ours: where they differ by more than
a thousandth of a deviation, the exit status is 1. Speeds on a CPU are per core; set OMP_NUM_THREADS=1, so that librosa
has one, too.
"""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.measure import add_device, median_seconds, report
from clip4vla.audio.frontend import LogMel, max_samples
from clip4vla.config import AudioConfig

IMAGE_SIZE = 224
CPU = torch.device("cpu")
SAME = 1e-3
"""By how much of the deviation of a log-mel ours may differ from librosa's."""


class Measured:
    """The front end, and a batch of noise that fills `tiles` tiles a clip."""

    def __init__(self, device: torch.device, clips: int, tiles: int, channels: int) -> None:
        self.config = AudioConfig(tiles=tiles)
        self.device = device
        self.front_end = LogMel(self.config, IMAGE_SIZE).to(device)
        length = max_samples(self.config, IMAGE_SIZE)
        generator = torch.Generator().manual_seed(0)
        self.waveform = (0.1 * torch.randn(clips, channels, length, generator=generator)).to(device)
        self.samples = torch.full((clips,), length, device=device)

    def figures(self, repeats: int) -> dict[str, float]:
        """Speed of the front end, and of its log-mel alone; on a CPU by core."""
        clips, _, length = self.waveform.shape
        cores = 1 if self.device.type == "cuda" else torch.get_num_threads()
        speed, seconds = {}, {}
        for name, compute in (("", self.front_end), ("log_mel_", self.front_end.log_mel)):
            run = partial(compute, self.waveform, self.samples)
            seconds[name] = median_seconds(run, self.device, repeats=repeats)
            speed[f"{name}audio_s_per_s"] = clips * length / self.config.sample_rate / seconds[name] / cores
        return {"ms_per_clip": 1e3 * seconds[""] / clips, "ms_per_audio_s": 1e3 / speed["audio_s_per_s"]} | speed

    def against_librosa(self, figures: dict[str, float], repeats: int) -> dict[str, float]:
        """How many times as fast as librosa on one core, and the largest difference of the first clip."""
        waveform = self.waveform[0].cpu().numpy()
        channels = np.stack([waveform[0], waveform.mean(axis=0), waveform[-1]])
        seconds = median_seconds(lambda: librosa_log_mel(channels), CPU, warmup=1, repeats=repeats)
        published_speed = waveform.shape[1] / self.config.sample_rate / seconds
        ours, _ = self.front_end.log_mel(self.waveform[:1], self.samples[:1])
        return {
            "librosa_audio_s_per_s": published_speed,
            "times_librosa": figures["audio_s_per_s"] / published_speed,
            "log_mel_times_librosa": figures["log_mel_audio_s_per_s"] / published_speed,
            "largest_difference": difference(ours[0], librosa_log_mel(channels)),
        }


def librosa_log_mel(channels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(3, rows, bands) in dB of three channels (3, S), as the published code computes them with librosa."""
    import librosa

    spectra = [
        librosa.power_to_db(
            librosa.feature.melspectrogram(
                y=channel, sr=16000, n_fft=512, hop_length=128, n_mels=IMAGE_SIZE, fmax=8000, pad_mode="constant"
            )
        )
        for channel in channels
    ]
    return np.stack(spectra).transpose(0, 2, 1)


def difference(ours: Tensor, published: NDArray[np.float32]) -> float:
    """Largest of ours (1 or 3, rows, bands) from the published (3, rows, bands), in deviations of the latter."""
    apart = ours.cpu().double().expand(3, -1, -1).numpy() - published
    return float(np.abs(apart / published.std(axis=(1, 2), keepdims=True)).max())


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure mono and stereo, and print one JSON line."""
    parser = ArgumentParser(prog="python -m benchmarks.audio_frontend", description=__doc__)
    add_device(parser)
    parser.add_argument("--clips", type=int, default=32, help="in a batch")
    parser.add_argument("--tiles", type=int, default=6, help="of 1.792 s, a clip")
    parser.add_argument("--repeats", type=int, default=10)
    settings = parser.parse_args(arguments)
    results: dict[str, dict[str, Any]] = {}
    for name, channels in (("mono", 1), ("stereo", 2)):
        measured = Measured(settings.device, settings.clips, settings.tiles, channels)
        results[name] = measured.figures(settings.repeats)
        if find_spec("librosa"):
            results[name] |= measured.against_librosa(results[name], settings.repeats)
    if not find_spec("librosa"):
        print("not compared with librosa, which isn't installed: `pip install librosa`", file=sys.stderr)
    report("audio_frontend", settings.device, settings, results, ("librosa", "numba"))
    if any(figures.get("largest_difference", 0.0) > SAME for figures in results.values()):
        sys.exit("the log-mel isn't librosa's")


if __name__ == "__main__":
    main()
