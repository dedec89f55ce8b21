"""Variants of a recording that training does not have: a wave in, the same sound in another pitch, tempo and room out.

Rendered by pedalboard; seeded.
"""

import numpy as np
import pedalboard
from numpy.typing import NDArray

SEMITONES = (1.5, 3.5)
"""Up or down."""
TEMPO = (0.8, 1.25)
HIGHPASS_HZ, LOWPASS_HZ = (80.0, 300.0), (2500.0, 6000.0)
ROOM, WET = (0.2, 0.7), (0.15, 0.4)
"""Size of the room, 0 to 1, and level of its echo."""
MP3_QUALITY = (5.0, 9.5)
"""Variable bit rate: 0 is best, 10 worst."""


def vary_sound(wave: NDArray[np.float32], sample_rate: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A variant of `wave` (S,): pitch and tempo changed, in a room, filtered, through an MP3 codec; (T,) float32."""
    semitones = rng.choice([-1, 1]) * rng.uniform(*SEMITONES)
    stretched = pedalboard.time_stretch(wave, sample_rate, rng.uniform(*TEMPO), semitones)
    wet = rng.uniform(*WET)
    board = pedalboard.Pedalboard(
        [
            pedalboard.Reverb(room_size=rng.uniform(*ROOM), wet_level=wet, dry_level=1 - wet, width=0.0),
            pedalboard.HighpassFilter(rng.uniform(*HIGHPASS_HZ)),
            pedalboard.LowpassFilter(rng.uniform(*LOWPASS_HZ)),
            pedalboard.MP3Compressor(rng.uniform(*MP3_QUALITY)),
        ]
    )
    return np.asarray(board(stretched[0], sample_rate), np.float32)
