"""Other pictures of what the stamps show: listed with their sources, rendered, cut to what is drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import ImageColor

from clip4vla.corpora.stampscenes.pictures import DRAWINGS, listed_drawings, read_pictures
from clip4vla.rehearsal.stamp_package import DRAWN


def test_pictures_of_the_labels_asked_for_are_rendered(clipart: Path) -> None:
    pictures = read_pictures(clipart, ["a dog", "a cow", "a cat", "no such thing"], 40)
    assert sorted(pictures) == ["a cow", "a dog"]  # nothing is listed for the others
    for label, picture in pictures.items():
        assert picture.mode == "RGBA"
        assert picture.size == (40, 40)  # the disc is drawn small on its page
        pixels = np.asarray(picture)
        assert tuple(pixels[20, 20, :3]) == ImageColor.getrgb(DRAWN[label])
        assert pixels[20, 20, 3] == 255
        assert pixels[0, 0, 3] == 0


def test_a_drawing_that_the_package_lacks_is_named(clipart: Path) -> None:
    missing = DRAWINGS / listed_drawings()["a fox"].file
    with pytest.raises(ValueError, match=f"clipart.deb lacks 1 drawings, such as {missing}"):
        read_pictures(clipart, ["a dog", "a fox"], 40)


def test_the_list_names_a_drawing_and_its_author_for_each_label() -> None:
    drawings = listed_drawings()
    files = [drawing.file for drawing in drawings.values()]
    assert len(files) == len(set(files)) >= 40
    assert all(file.endswith(".svg") and ".." not in file for file in files)
    assert all(drawing.author for drawing in drawings.values())
