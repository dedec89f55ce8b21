"""Which chunks become one fragment."""

import pytest

from clip4vla.clips import fragments
from clip4vla.clips.fragments import chunk_name, plan


def test_every_chunk_is_in_one_fragment_and_none_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fragments, "CHUNKS", 3)
    groups = plan({"train": 10 * 64 + 1, "test": 64}, 64)
    assert [(group.split, len(group.starts)) for group in groups] == [
        ("train", 3),
        ("train", 3),
        ("train", 5),
        ("test", 1),
    ]
    names = [name for group in groups for name in group.chunks]
    assert names == [*(chunk_name("train", start) for start in range(0, 641, 64)), "test-000000000"]
    assert [group.name for group in groups] == [names[0], names[3], names[6], names[11]]


def test_a_fragment_has_100_000_clips_where_a_fifth_is_rejected() -> None:
    for records in (200_000, 128_000, 1_300_000, 36_000_000):
        groups = plan({"train": records}, 64)
        sizes = [min(records, group.starts[-1] + 64) - group.starts[0] for group in groups]
        assert sum(sizes) == records
        assert all(0.8 * size >= 100_000 for size in sizes)
