"""Other pictures of what the stamps show: Debian's `openclipart-svg` in, rendered pictures by label out.

`unseen_pictures.json` lists which drawing stands for which label, with its author. Each was looked at beside the stamp:
it shows what the label says, and is not the drawing that the stamp was made from.
"""

import io
import json
from collections.abc import Collection
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath

import resvg_py
from PIL import Image

from clip4vla.corpora.stampscenes.archive import read_members

DRAWINGS = PurePosixPath("usr/share/openclipart/svg")
LIST_FILE = "unseen_pictures.json"
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


def listed_drawings() -> dict[str, Drawing]:
    """The drawing of each label that has one."""
    tree = json.loads((files(__package__) / LIST_FILE).read_text(encoding="utf-8"))
    return {label: Drawing(**entry) for label, entry in tree.items()}


def read_pictures(deb: Path, labels: Collection[str], side: int) -> dict[str, Image.Image]:
    """RGBA pictures, cut to what is drawn, in a square of `side` pixels, of those `labels` that have a drawing.

    Raises:
        ValueError: `deb` isn't the package, or a drawing is missing or can't be rendered.
    """
    drawings = {label: drawing.file for label, drawing in listed_drawings().items() if label in labels}
    wanted = {DRAWINGS / file for file in drawings.values()}
    members = read_members(deb, lambda path: path in wanted, skip_symlinks=True)
    if missing := sorted(str(path) for path in wanted if path not in members):
        raise ValueError(f"{deb} lacks {len(missing)} drawings, such as {missing[0]}")
    return {label: _render(file, members[DRAWINGS / file], side) for label, file in drawings.items()}


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
