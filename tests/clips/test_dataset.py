"""Clips by index, over one or several data sets, and the version that identifies a data set."""

import shutil
from pathlib import Path

import lance
import pytest

from clip4vla.clips.dataset import ClipDataset, data_version


def test_the_clips_of_all_data_sets_are_taken_in_the_order_of_the_indices(dataset: ClipDataset) -> None:
    assert dataset.sizes == (11, 5)
    assert len(dataset) == 16
    taken = dataset.take([15, 0, 11, 10, 0])
    assert [clip.clip_id for clip in taken] == ["train4", "train0", "train0", "train10", "train0"]
    assert taken[1].texts == taken[4].texts
    assert taken[1].audio is not None
    assert taken[2].audio is not None


@pytest.mark.parametrize("wrong", [[16], [-1], [3, 99]])
def test_a_clip_that_is_not_there_is_an_error(dataset: ClipDataset, wrong: list[int]) -> None:
    with pytest.raises(IndexError, match="of 16 clips there is none at"):
        dataset.take(wrong)


def test_missing_clips_are_an_error_that_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dvc repro clips"):
        ClipDataset([tmp_path / "missing.lance"])
    with pytest.raises(ValueError, match="dvc repro clips"):
        ClipDataset([])


def test_all_sentences_are_read_in_order(dataset: ClipDataset) -> None:
    expected = [text.text for clip in dataset.take(range(len(dataset))) for text in clip.texts]
    assert list(dataset.sentences()) == expected


def test_ids_are_listed_in_the_order_of_the_indices(dataset: ClipDataset) -> None:
    assert dataset.clip_ids == tuple(clip.clip_id for clip in dataset.take(range(len(dataset))))


def test_another_write_of_the_same_clips_is_another_version(clips: Path, tmp_path: Path) -> None:
    one, two = clips / "one" / "train.lance", clips / "two" / "train.lance"
    shutil.copytree(one, tmp_path / "copy.lance")
    lance.write_dataset(lance.dataset(str(one)).to_table(), str(tmp_path / "again.lance"))
    assert data_version(tmp_path / "copy.lance") == data_version(one)
    assert len({data_version(path) for path in (one, two, tmp_path / "again.lance")}) == 3
