"""Other pictures of what the stamps show: listed with their sources, rendered, cut to what is drawn."""

from pathlib import Path

import numpy as np
import pytest
from PIL import ImageColor

from clip4vla.corpora.stampscenes.pictures import (
    DRAWINGS,
    read_training_pictures,
    read_unseen_pictures,
    training_drawings,
    unseen_drawings,
)
from clip4vla.rehearsal.stamp_package import DRAWN, TRAINING_COLOUR


def test_pictures_of_the_labels_asked_for_are_rendered(clipart: Path) -> None:
    pictures = read_unseen_pictures(clipart, ["a dog", "a cow", "a cat", "no such thing"], 40)
    assert sorted(pictures) == ["a cow", "a dog"]  # nothing is listed for the others
    for label, picture in pictures.items():
        assert picture.mode == "RGBA"
        assert picture.size == (40, 40)  # the disc is drawn small on its page
        pixels = np.asarray(picture)
        assert tuple(pixels[20, 20, :3]) == ImageColor.getrgb(DRAWN[label])
        assert pixels[20, 20, 3] == 255
        assert pixels[0, 0, 3] == 0


def test_a_drawing_that_the_package_lacks_is_named(clipart: Path) -> None:
    missing = DRAWINGS / unseen_drawings()["a fox"].file
    with pytest.raises(ValueError, match=f"clipart.deb lacks 1 drawings, such as {missing}"):
        read_unseen_pictures(clipart, ["a dog", "a fox"], 40)


def test_training_has_drawings_of_its_own(clipart: Path) -> None:
    pictures = read_training_pictures(clipart, ["a dog", "a cow", "a cat"], 40)
    assert {label: len(found) for label, found in pictures.items()} == {"a dog": 3, "a cow": 1}
    for picture in (*pictures["a dog"], *pictures["a cow"]):
        assert tuple(np.asarray(picture)[20, 20, :3]) == ImageColor.getrgb(TRAINING_COLOUR)


def test_the_lists_name_drawings_with_their_authors() -> None:
    unseen = list(unseen_drawings().values())
    trained = [drawing for found in training_drawings().values() for drawing in found]
    assert len(unseen) >= 40
    assert len(trained) >= 50
    files = [drawing.file for drawing in (*unseen, *trained)]
    assert len(files) == len(set(files))  # none is both trained on and unseen
    assert all(file.endswith(".svg") and ".." not in file for file in files)
    assert all(drawing.author for drawing in (*unseen, *trained))
    assert training_drawings().keys() <= unseen_drawings().keys()
