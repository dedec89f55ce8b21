"""Other pictures of what the stamps show: Debian's `openclipart-svg` in, rendered pictures by label out.

`unseen_pictures.json` lists which drawing stands for which label in unseen clips, and `training_pictures.json` which
further ones training clips may have, with their authors. Each was looked at beside the stamp: it shows what the label
says, and is not the drawing that the stamp was made from. No drawing of training is a copy of an unseen one.
"""

import io
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

import resvg_py
from PIL import Image

from clip4vla.corpora.stampscenes.archive import read_members

DRAWINGS = PurePosixPath("usr/share/openclipart/svg")
UNSEEN_FILE, TRAINING_FILE = "unseen_pictures.json", "training_pictures.json"
OVERSAMPLING = 4
"""Drawings are rendered so many times wider than needed: some are small on an empty page."""
DPI = 96
"""Pixels per inch, for drawings whose size is in millimetres or points."""


@dataclass(frozen=True)
class Drawing:
    """A drawing in the package."""

    file: str
    """Its path below `DRAWINGS`."""
    author: str
    """As its metadata say; empty where they don't."""


def unseen_drawings() -> dict[str, Drawing]:
    """The drawing of unseen clips of each label that has one."""
    return {label: Drawing(**entry) for label, entry in _read_list(UNSEEN_FILE).items()}


def training_drawings() -> dict[str, list[Drawing]]:
    """The drawings that training clips may have, of each label that has some."""
    return {label: [Drawing(**entry) for entry in entries] for label, entries in _read_list(TRAINING_FILE).items()}


def read_unseen_pictures(deb: Path, labels: Collection[str], side: int) -> dict[str, Image.Image]:
    """RGBA pictures, cut to what is drawn, in a square of `side` pixels, of those `labels` that have a drawing.

    Raises:
        ValueError: `deb` isn't the package, or a drawing is missing or can't be rendered.
    """
    drawings = {label: drawing.file for label, drawing in unseen_drawings().items() if label in labels}
    rendered = _read(deb, drawings.values(), side)
    return {label: rendered[file] for label, file in drawings.items()}


def read_training_pictures(deb: Path, labels: Collection[str], side: int) -> dict[str, list[Image.Image]]:
    """The same of all drawings for training clips.

    Raises:
        ValueError: likewise.
    """
    files = {label: [each.file for each in found] for label, found in training_drawings().items() if label in labels}
    rendered = _read(deb, [file for of_label in files.values() for file in of_label], side)
    return {label: [rendered[file] for file in of_label] for label, of_label in files.items()}


def _read_list(file: str) -> Any:
    return json.loads((files(__package__) / file).read_text(encoding="utf-8"))


def _read(deb: Path, names: Iterable[str], side: int) -> dict[str, Image.Image]:
    """Drawings of the package, rendered, by their path below `DRAWINGS`."""
    wanted = {DRAWINGS / name: name for name in names}
    members = read_members(deb, lambda path: path in wanted, skip_symlinks=True)
    if missing := sorted(str(path) for path in wanted if path not in members):
        raise ValueError(f"{deb} lacks {len(missing)} drawings, such as {missing[0]}")
    return {name: _render(name, members[path], side) for path, name in wanted.items()}


def _render(file: str, svg: bytes, side: int) -> Image.Image:
    text = svg.decode("utf-8", errors="replace")
    try:
        png = resvg_py.svg_to_bytes(svg_string=text, width=OVERSAMPLING * side, dpi=DPI, skip_system_fonts=True)
    except ValueError as error:
        raise ValueError(f"the drawing {file} can't be rendered: {error}") from error
    page = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    box = page.getchannel("A").getbbox()
    if box is None:
        raise ValueError(f"the drawing {file} is empty")
    picture = page.crop(box)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    return picture
