"""The labelled stamps of the stamp package: a picture, a spoken label, for some a sound effect.

In: the .deb. Out: `Stamp`s as they lie in the package, and `Stamp`s, decoded.
"""

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import av
import numpy as np
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray
from PIL import Image

from clip4vla.corpora.stampscenes.archive import read_members

STAMPS = PurePosixPath("usr/share/tuxpaint/stamps")
AUDIO_SUFFIXES = (".ogg", ".wav")
MAX_LABEL_WORDS = 5
SILENCE = 0.02
"""Below this fraction of its peak the start and the end of a recording count as silence."""
COARSE = 8
"""Samples that `likeness` takes together."""
SPOKEN_EFFECTS = "symbols"
"""Under this folder the "sound effects" are spoken (the names of letters and digits), so they count as none."""


@dataclass(frozen=True)
class EncodedStamp:
    """One stamp as it lies in the package: labels, and the bytes of its files."""

    label: str
    """What it is, in English with its article: "a cow"."""
    spoken: str
    """What the voice says: "una vaca"."""
    picture: bytes
    voice: bytes
    sound: bytes | None
    """None for a stamp without a sound effect."""
    other_sounds: tuple[bytes, ...] = ()
    """Those of further stamps with the same label."""


@dataclass(frozen=True)
class Stamp:
    """One stamp, decoded."""

    label: str
    spoken: str
    picture: Image.Image
    """RGBA."""
    voice: NDArray[np.float32]
    """(S,) mono, in -1..1, without the silence around it."""
    sound: NDArray[np.float32] | None
    """(S,) likewise."""
    other_sounds: tuple[NDArray[np.float32], ...] = ()
    """(S,) each: other recordings of the same thing, which no training clip has."""


def read_stamps(deb: Path, language: str) -> list[EncodedStamp]:
    """Every stamp that has a PNG picture, a short label and a voice in `language`, in order of their paths.

    Of several stamps with one label (English or spoken) or one sound the first is taken, so that a label tells.

    Raises:
        ValueError: `deb` isn't the package.
    """
    members = read_members(deb, lambda path: _is_wanted(path, language))
    stamps: dict[str, EncodedStamp] = {}
    spoken: set[str] = set()
    sounds: set[bytes | None] = set()
    others: dict[str, list[bytes]] = {}
    for path in sorted(p for p in members if p.suffix == ".txt"):
        label, words = _labels(members[path], language)
        picture = members.get(path.with_suffix(".png"))
        voice = _first(members, *(path.with_name(f"{path.stem}_desc_{language}{e}") for e in AUDIO_SUFFIXES))
        effect = _first(members, *(path.with_suffix(e) for e in AUDIO_SUFFIXES))
        if label in stamps and effect and SPOKEN_EFFECTS not in path.parts:
            others.setdefault(label, []).append(effect)
        if not (picture and voice and _is_short(label) and words) or label in stamps or words in spoken:
            continue
        if SPOKEN_EFFECTS in path.parts or effect in sounds:
            effect = None
        stamps[label] = EncodedStamp(label, words, picture, voice, effect)
        spoken.add(words)
        sounds.add(effect)
    further = {label: tuple(sound for sound in found if sound not in sounds) for label, found in others.items()}
    return [replace(stamp, other_sounds=further.get(stamp.label, ())) for stamp in stamps.values()]


def decode_stamp(stamp: EncodedStamp, *, sample_rate: int, picture_side: int) -> Stamp:
    """Decode a stamp; its picture fits into a square of `picture_side` pixels.

    Raises:
        ValueError: a file of it can't be read.
    """
    try:
        return Stamp(
            stamp.label,
            stamp.spoken,
            _read_picture(stamp.picture, picture_side),
            read_sound(stamp.voice, sample_rate),
            read_sound(stamp.sound, sample_rate) if stamp.sound else None,
            tuple(read_sound(sound, sample_rate) for sound in stamp.other_sounds),
        )
    except (OSError, av.error.FFmpegError) as error:
        raise ValueError(f"the stamp {stamp.label!r} can't be decoded: {error}") from error


def likeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The greatest correlation of two sounds over all shifts, 0 to 1; 1 is the same sound, louder or not.

    Compares means of `COARSE` samples, which tells recordings apart at a fraction of the cost. (Pure tones above a
    sixteenth of the sample rate fold onto others there; recordings aren't pure tones.)
    """
    from scipy.signal import correlate  # which takes half a second; every stage imports this module

    low = [wave[: len(wave) // COARSE * COARSE].reshape(-1, COARSE).mean(axis=1) for wave in (one, other)]
    energy = float(np.linalg.norm(low[0]) * np.linalg.norm(low[1]))
    return float(np.abs(correlate(*low, method="fft")).max()) / energy if energy else 0.0


def _is_wanted(path: PurePosixPath, language: str) -> bool:
    if not path.is_relative_to(STAMPS):
        return False
    described_in = re.fullmatch(r".*_desc_(\w+)", path.stem)
    if described_in:
        return described_in[1] == language
    return path.suffix in {".txt", ".png", ".ogg", ".wav"}


def _first(members: Mapping[PurePosixPath, bytes], *paths: PurePosixPath) -> bytes | None:
    return next((members[path] for path in paths if path in members), None)


def _labels(text: bytes, language: str) -> tuple[str, str]:
    """English and translated label: the first line, and the one that begins with `language.utf8=`."""
    lines = text.decode("utf-8", errors="replace").splitlines()
    translated = next((line.split("=", 1)[1] for line in lines if line.startswith(f"{language}.utf8=")), "")
    return _plain(lines[0] if lines else ""), _plain(translated)


def _plain(label: str) -> str:
    """Lower case, without parentheses and punctuation: "A baby sheep (a lamb)." -> "a baby sheep"."""
    return " ".join(re.sub(r"[^\w\s'’-]", " ", re.sub(r"\(.*?\)", " ", label)).lower().split())


def _is_short(label: str) -> bool:
    return 0 < len(label.split()) <= MAX_LABEL_WORDS


def _read_picture(png: bytes, side: int) -> Image.Image:
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture


def read_sound(encoded: bytes, sample_rate: int) -> NDArray[np.float32]:
    """Decode a whole sound file to mono (S,) in -1..1 at `sample_rate`, without the silence around it."""
    resampler = AudioResampler(format="fltp", layout="mono", rate=sample_rate)
    with av.open(io.BytesIO(encoded), "r") as container:
        frames = [*container.decode(audio=0), None]
        pieces = [piece.to_ndarray()[0] for frame in frames for piece in resampler.resample(frame)]
    wave = np.concatenate(pieces).astype(np.float32)
    return trim_silence(wave)


def trim_silence(wave: NDArray[np.float32]) -> NDArray[np.float32]:
    """`wave` (S,) without the silence at its start and end."""
    loud = np.flatnonzero(np.abs(wave) > SILENCE * np.abs(wave).max())
    return wave[loud[0] : loud[-1] + 1] if len(loud) else wave
