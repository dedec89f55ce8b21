"""Clips by index, over one or several data sets, and the version that identifies a data set."""

import pickle
import shutil
from pathlib import Path

import lance
import numpy as np
import pytest

from clip4vla.clips.dataset import ClipDataset, data_version
from clip4vla.clips.ingest import ingest
from clip4vla.records import Text
from tests.clips.conftest import AUDIO, CLIPS, write_corpus


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


def shared(dataset: ClipDataset) -> set[str]:
    """The captions of the data set that several clips have."""
    found = dataset.shared_captions()
    captions = {caption for caption in dataset.sentences() if caption in found}
    assert len(captions) == len(found)
    return captions


def test_captions_that_several_clips_have_are_shared(sharing: Path, dataset: ClipDataset) -> None:
    assert shared(ClipDataset([sharing])) == {f"bell {number}" for number in range(4)}
    # the clips of the second data set have the ids and texts of the first
    first = {text.text for clip in dataset.take(range(5)) for text in clip.texts}
    assert shared(dataset) == first
    assert len(ClipDataset([dataset.paths[0]]).shared_captions()) == 0


def test_a_caption_that_a_clip_has_twice_is_not_shared(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path, {"train": 2}, texts_of=lambda _, index: (Text(f"bell {index}"),) * 2)
    ingest(corpus.manifest, corpus.media, tmp_path / "clips", CLIPS, AUDIO)
    assert len(ClipDataset([tmp_path / "clips" / "train.lance"]).shared_captions()) == 0


def test_clips_without_a_caption_of_enough_words_are_left_out(sharing: Path, clips: Path) -> None:
    paths = [sharing, clips / "one" / "train.lance"]
    complete, long_enough = ClipDataset(paths), ClipDataset(paths, min_words=6)
    is_long = [any(len(text.text.split()) >= 6 for text in clip.texts) for clip in complete.take(range(len(complete)))]
    kept = np.flatnonzero(is_long)
    assert long_enough.sizes == (7, 0)
    assert len(long_enough) == len(kept) == 7
    assert long_enough.clip_ids == tuple(complete.clip_ids[index] for index in kept)
    order = [6, 0, 3]
    expected, taken = complete.take(kept[order]), long_enough.take(order)
    assert [(clip.clip_id, clip.texts) for clip in taken] == [(clip.clip_id, clip.texts) for clip in expected]
    with pytest.raises(IndexError, match="of 7 clips there is none at"):
        long_enough.take([7])
    assert set(long_enough.sentences()) == {text.text for clip in long_enough.take(range(7)) for text in clip.texts}
    assert shared(long_enough) == shared(complete)


def test_a_data_set_in_another_process_leaves_out_the_same_clips(sharing: Path) -> None:
    dataset = ClipDataset([sharing], min_words=6)
    assert len(dataset) == 7
    assert pickle.loads(pickle.dumps(dataset)).clip_ids == dataset.clip_ids


def test_what_was_found_of_all_captions_is_not_looked_for_again(
    sharing: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ClipDataset([sharing], min_words=6, found=tmp_path / "found")
    assert len(first) == 7
    first.shared_captions()
    bells = [f"bell {number}" for number in range(4)]
    monkeypatch.setattr("clip4vla.clips.dataset._captions", None)
    for dataset in (pickle.loads(pickle.dumps(first)), ClipDataset([sharing], min_words=6, found=tmp_path / "found")):
        assert len(dataset) == 7
        assert all(bell in dataset.shared_captions() for bell in bells)
        assert [clip.clip_id for clip in dataset.take([6, 0])] == [clip.clip_id for clip in first.take([6, 0])]


def test_another_write_of_the_same_clips_is_another_version(clips: Path, tmp_path: Path) -> None:
    one, two = clips / "one" / "train.lance", clips / "two" / "train.lance"
    shutil.copytree(one, tmp_path / "copy.lance")
    lance.write_dataset(lance.dataset(str(one)).to_table(), str(tmp_path / "again.lance"))
    assert data_version(tmp_path / "copy.lance") == data_version(one)
    assert len({data_version(path) for path in (one, two, tmp_path / "again.lance")}) == 3
