"""A Debian package like `tuxpaint-stamps-default`, made of drawn pictures and tones: a few kilobytes."""

import io
import tarfile
import wave
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

FOLDER = "./usr/share/tuxpaint/stamps/animals"
NAMES = ("cat", "dog", "cow", "hen", "owl", "bee", "fox", "pig", "ape", "elk")


def write_stamp_package(path: Path, extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    """Write a package of ten stamps, the first six with a sound effect; `extra` members come last."""
    files = {}
    for index, name in enumerate(NAMES):
        files[f"{FOLDER}/{name}.png"] = _picture(index)
        files[f"{FOLDER}/{name}.txt"] = f"A {name}.\nes.utf8=Un {name}o.\nfr.utf8=Le {name}.\n".encode()
        for language in ("es", "fr"):
            files[f"{FOLDER}/{name}_desc_{language}.wav"] = _tone(300 + 90 * index, 0.4)
        if index < 6:
            files[f"{FOLDER}/{name}.wav"] = _tone(150 + 60 * index, 0.2)
    control = {"./control": b"Package: tuxpaint-stamps-default\nVersion: 2022.06.04-1\n"}
    members = {"debian-binary": b"2.0\n", "control.tar.xz": _tar(control), "data.tar.xz": _tar(files, extra)}
    path.write_bytes(b"!<arch>\n" + b"".join(_ar_member(name, data) for name, data in members.items()))
    return path


def _ar_member(name: str, data: bytes) -> bytes:
    header = f"{name:<16}{0:<12}{0:<6}{0:<6}{'100644':<8}{len(data):<10}`\n".encode()
    return header + data + b"\n" * (len(data) % 2)


def _tar(files: dict[str, bytes], extra: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
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


def _tone(hertz: float, seconds: float) -> bytes:
    samples = np.sin(2 * np.pi * hertz * np.arange(int(16000 * seconds)) / 16000)
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes((samples * 20000).astype("<i2").tobytes())
    return buffer.getvalue()
