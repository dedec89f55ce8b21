"""Debian packages like those that StampScenes is made of, with drawn pictures and tones: a few kilobytes."""

import io
import tarfile
import wave
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from clip4vla.corpora.stampscenes.pictures import training_drawings, unseen_drawings

FOLDER = "./usr/share/tuxpaint/stamps/animals"
DRAWINGS = "./usr/share/openclipart/svg"
DRAWN = {"a dog": "#c01010", "a cow": "#1010c0", "a bee": "#10c010"}
"""Labels of stamps with another picture in unseen clips, and its colour."""
TRAINING_COLOUR = "#c0c010"
"""Of the drawings of training clips."""
NAMES = ("cat", "dog", "cow", "hen", "owl", "bee", "fox", "pig", "ape", "elk")


def write_stamp_package(
    path: Path,
    extra: tuple[tarfile.TarInfo, ...] = (),
    further: Mapping[str, bytes] | None = None,
    languages: Sequence[str] = ("es", "fr"),
) -> Path:
    """Write a package of ten stamps, the first six of them with a sound.

    Args:
        path: the .deb to write.
        extra: members of the archive that come last.
        further: content of further files by their path.
        languages: of the voices, which differ between them.
    """
    files = {}
    for index, name in enumerate(NAMES):
        labels = [f"A {name}.", *(f"{language}.utf8=Un {name}o." for language in languages)]
        files[f"{FOLDER}/{name}.png"] = _picture(index)
        files[f"{FOLDER}/{name}.txt"] = "\n".join([*labels, ""]).encode()
        for number, language in enumerate(languages):
            files[f"{FOLDER}/{name}_desc_{language}.wav"] = _tone(300 + 90 * index + 10 * number, 0.4)
        if index < 6:
            files[f"{FOLDER}/{name}.wav"] = _tone(150 + 60 * index, 0.2)
    return _write_package(path, "tuxpaint-stamps-default", "2022.06.04-1", files | dict(further or {}), extra)


def write_clipart_package(path: Path) -> Path:
    """Write a package of clip art with the drawings of each label in `DRAWN`, and a link, as Debian's has some."""
    files = {}
    for label, colour in DRAWN.items():
        files[f"{DRAWINGS}/{unseen_drawings()[label].file}"] = _drawing(colour)
        for drawing in training_drawings().get(label, ()):
            files[f"{DRAWINGS}/{drawing.file}"] = _drawing(TRAINING_COLOUR)
    link = tarfile.TarInfo(f"{DRAWINGS}/link.svg")
    link.type, link.linkname = tarfile.SYMTYPE, "animals/other.svg"
    return _write_package(path, "openclipart-svg", "1:0.18+dfsg-19", files, (link,))


def _write_package(
    path: Path, name: str, version: str, files: Mapping[str, bytes], extra: tuple[tarfile.TarInfo, ...]
) -> Path:
    control = {"./control": f"Package: {name}\nVersion: {version}\n".encode()}
    members = {"debian-binary": b"2.0\n", "control.tar.xz": _tar(control), "data.tar.xz": _tar(files, extra)}
    path.write_bytes(b"!<arch>\n" + b"".join(_ar_member(name, data) for name, data in members.items()))
    return path


def _ar_member(name: str, data: bytes) -> bytes:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
    return header + data + b"\n" * (len(data) % 2)


def _tar(files: Mapping[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in extra:
            tar.addfile(member)
    return buffer.getvalue()


def _picture(index: int) -> bytes:
    image = Image.new("RGBA", (60, 60), (0, 0, 0, 0))
    colour = tuple(int(c) for c in np.random.default_rng(index).integers(0, 255, 3))
    draw = ImageDraw.Draw(image)
    (draw.ellipse if index % 2 else draw.rectangle)((5, 5, 54, 30 + 2 * index), fill=colour)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def _drawing(colour: str) -> bytes:
    """A page with a disc off its centre, in millimetres as of the usual drawing programs."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="200mm" height="200mm" viewBox="0 0 200 200">'
        f'<circle cx="60" cy="50" r="30" fill="{colour}"/></svg>'
    ).encode()


def _tone(hertz: float, seconds: float) -> bytes:
    samples = np.sin(2 * np.pi * hertz * np.arange(int(16000 * seconds)) / 16000)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((samples * 20000).astype("<i2").tobytes())
    return buffer.getvalue()
