"""Which chunks become one fragment."""

from itertools import pairwise

import pytest

from clip4vla.clips import fragments
from clip4vla.clips.fragments import chunk_name, plan


def test_every_chunk_is_in_one_fragment_and_none_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragments, "RECORDS", 3 * 64)
    starts = range(0, 641, 64)
    groups = plan({"train": starts, "val": [], "test": [0]}, {"train": 641, "val": 0, "test": 64})
    assert [(group.split, len(group.starts)) for group in groups] == [
        ("train", 3),
        ("train", 3),
        ("train", 5),
        ("test", 1),
    ]
    names = [name for group in groups for name in group.chunks]
    assert names == [*(chunk_name("train", start) for start in starts), "test-000000000"]
    assert [group.name for group in groups] == [names[0], names[3], names[6], names[11]]


def test_chunks_of_shards_have_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragments, "RECORDS", 100)
    groups = plan({"train": [0, 90, 110, 500, 520]}, {"train": 530})
    assert [list(group.starts) for group in groups] == [[0, 90], [110], [500, 520]]


def test_a_fragment_has_100_000_clips_where_a_fifth_is_rejected() -> None:
    for records in (200_000, 128_000, 1_300_000, 36_000_000):
        groups = plan({"train": range(0, records, 64)}, {"train": records})
        bounds = [*(group.starts[0] for group in groups), records]
        sizes = [high - low for low, high in pairwise(bounds)]
        assert all(0.8 * size >= 100_000 for size in sizes)
