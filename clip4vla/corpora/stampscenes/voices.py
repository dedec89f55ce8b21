"""Speakers that the stamp package does not have: words in, speech of the synthesizer espeak-ng out.

The wheel `espeakng-loader` carries the library and its voices for all languages of the stamps, so that nothing is
downloaded. The voices of the test clips are none of those that training can have (`TEST_VOICES`, `TRAINING_VOICES`).
"""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

import espeakng_loader
import numpy as np
from numpy.typing import NDArray

from clip4vla.corpora.stampscenes.stamps import Stamp, trim_silence
from clip4vla.utils.pool import process_pool

# constants of espeak-ng's speak_lib.h
SYNCHRONOUS, DONT_EXIT = 2, 0x8000
RATE_PARAMETER, PITCH_PARAMETER = 1, 3
UTF8 = 1

_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


@dataclass(frozen=True)
class Voice:
    """A speaker of espeak-ng."""

    variant: str
    """One of the library's voice variants, in `espeak-ng-data/voices/!v`."""
    pitch: int = 50
    """0 to 99; 50 is the usual pitch of the variant."""
    words_per_minute: int = 150


TEST_VOICES = (Voice("f2", 55), Voice("m3", 45, 165), Voice("Alicia", 50, 140), Voice("Mario", 50, 150))
"""Two women and two men: the speakers of the unseen test clips."""
TRAINING_VOICES = (
    *(Voice("f1"), Voice("m1"), Voice("Annie", 50, 165), Voice("m7", 40, 140), Voice("f4", 60, 160), Voice("Andy")),
    *(Voice("steph", 45, 145), Voice("m5", 55, 170), Voice("anika", 50, 150), Voice("Michael", 45, 140)),
    *(Voice("linda", 55, 160), Voice("pablo", 50, 155)),
)
"""The speakers that `stampscenes.training_voices` takes its number from, in this order."""


def voice_casts(stamps: Sequence[Stamp], language: str, voices: Sequence[Voice], sample_rate: int) -> list[list[Stamp]]:
    """The stamps as each of `voices` says their names.

    Raises:
        ValueError: see `say`.
    """
    spoken = say([stamp.spoken for stamp in stamps], language, voices, sample_rate)
    return [[replace(stamp, voice=wave) for stamp, wave in zip(stamps, waves, strict=True)] for waves in spoken]


def say(
    sentences: Sequence[str], language: str, voices: Sequence[Voice], sample_rate: int
) -> list[list[NDArray[np.float32]]]:
    """What each voice says, for each sentence: (S,) mono in -1..1 at `sample_rate`, without the silence around it.

    The synthesizer's noise depends on what it said before, so it runs in a process of its own, where the same call
    gives the same samples.

    Raises:
        ValueError: espeak-ng does not have the language or a variant.
    """
    from scipy.signal import resample_poly

    with process_pool(1) as process:
        spoken, rate = process.submit(_synthesize, tuple(sentences), language, tuple(voices)).result()
    factor = gcd(sample_rate, rate)
    return [
        [trim_silence(resample_poly(wave, sample_rate // factor, rate // factor).astype(np.float32)) for wave in waves]
        for waves in spoken
    ]


def _synthesize(
    sentences: Sequence[str], language: str, voices: Sequence[Voice]
) -> tuple[list[list[NDArray[np.float32]]], int]:
    """Waves (S,) in -1..1 by voice and sentence, and their sample rate in Hz."""
    library = ctypes.CDLL(espeakng_loader.get_library_path())
    pieces: list[NDArray[np.int16]] = []

    @_CALLBACK
    def receive(samples: "ctypes._Pointer[ctypes.c_short]", count: int, _: int | None) -> int:
        if samples and count:
            pieces.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    rate = library.espeak_Initialize(SYNCHRONOUS, 0, espeakng_loader.get_data_path().encode(), DONT_EXIT)
    if rate <= 0:
        raise ValueError(f"espeak-ng can't be started: espeak_Initialize returned {rate}")
    library.espeak_SetSynthCallback(receive)
    spoken = []
    for voice in voices:
        if library.espeak_SetVoiceByName(f"{language}+{voice.variant}".encode()):
            raise ValueError(f"espeak-ng has no voice {language}+{voice.variant}")
        library.espeak_SetParameter(RATE_PARAMETER, voice.words_per_minute, 0)
        library.espeak_SetParameter(PITCH_PARAMETER, voice.pitch, 0)
        waves = []
        for sentence in sentences:
            library.espeak_ng_SetRandSeed(0)
            text = sentence.encode()
            if library.espeak_Synth(text, len(text) + 1, 0, 0, 0, UTF8, None, None) or not pieces:
                raise ValueError(f"espeak-ng can't say {sentence!r}")
            waves.append((np.concatenate(pieces) / 32768).astype(np.float32))
            pieces.clear()
        spoken.append(waves)
    return spoken, rate
