"""How much of a sound is speech, for corpora whose texts have no audio type.

Found by silero-vad, whose weights are in its wheel.
"""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clip4vla.records import AudioType, Text

RATES = (8000, 16000)
"""Sample rates that the detector was trained for."""
PROBABILITY = 0.5
"""Of speech, above which a window of 32 ms counts; the detector's own default."""


def speech_share(audio: NDArray[np.int16], sample_rate: int) -> float:
    """Share of the windows of `audio` (C, S) that are speech, in the mix of its channels.

    Raises:
        ValueError: the sample rate isn't the detector's, or silero-vad isn't installed.
    """
    if sample_rate not in RATES:
        raise ValueError(f"clips.verbal_above needs audio.sample_rate to be 8000 or 16000, not {sample_rate}")
    mono = torch.from_numpy(audio.mean(axis=0, dtype=np.float32) / 32768)
    with torch.inference_mode():
        probabilities = _detector().audio_forward(mono.unsqueeze(0), sr=sample_rate)
    return float((probabilities > PROBABILITY).float().mean())


@lru_cache(maxsize=1)
def _detector() -> Any:
    try:
        from silero_vad import load_silero_vad
    except ImportError as error:
        raise ValueError("clips.verbal_above needs silero-vad: `pip install 'clip4vla[speech]'`") from error
    threads = torch.get_num_threads()
    detector = load_silero_vad()
    torch.set_num_threads(threads)  # which loading it sets to 1
    return detector


def label(texts: tuple[Text, ...], share: float, verbal_above: float) -> tuple[Text, ...]:
    """The texts, those without an audio type being verbal where more than `verbal_above` of the sound is speech."""
    found: AudioType = "verbal" if share > verbal_above else "nonverbal"
    return tuple(text if text.audio_type else Text(text.text, found) for text in texts)
