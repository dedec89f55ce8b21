"""The drift of embeddings: none by chance, however few there are, and as far as they were moved."""

from pathlib import Path

import numpy as np
import pytest

from clip4vla.inference.drift import (
    REFERENCE_FILE,
    EmbeddingStatistics,
    make_reference,
    read_reference,
    write_reference,
)

WIDTH = 64


def embeddings(count: int, seed: int, moved: float = 0.0) -> np.ndarray:
    """Embeddings of a spread of 1 whose mean is `moved` away from that of others."""
    rng = np.random.default_rng(seed)
    direction = np.zeros(WIDTH)
    direction[3] = moved
    return (rng.normal(scale=WIDTH**-0.5, size=(count, WIDTH)) + direction).astype(np.float32)


def test_statistics_are_those_of_numpy() -> None:
    vectors = embeddings(50, 0)
    found = EmbeddingStatistics.of(vectors)
    np.testing.assert_allclose(found.mean, vectors.mean(0), rtol=1e-5)
    assert found.spread == pytest.approx(np.trace(np.cov(vectors.T)), rel=1e-5)
    assert found.count == 50


@pytest.mark.parametrize("count", [30, 300, 3000])
@pytest.mark.parametrize("moved", [0.0, 0.3, 1.0])
def test_drift_is_how_far_the_mean_has_moved_in_units_of_the_spread(count: int, moved: float) -> None:
    reference = EmbeddingStatistics.of(embeddings(1000, 1))
    found = [reference.drift(EmbeddingStatistics.of(embeddings(count, seed, moved))) for seed in range(2, 30)]
    assert np.sqrt(np.mean(np.square(found))) == pytest.approx(moved, abs=0.1)


def test_a_reference_is_read_as_it_was_written(tmp_path: Path) -> None:
    reference = {"text": EmbeddingStatistics.of(embeddings(5, 0)), "media": EmbeddingStatistics.of(embeddings(6, 1))}
    assert read_reference(tmp_path) is None
    write_reference(reference, tmp_path)
    assert read_reference(tmp_path) == reference
    (tmp_path / REFERENCE_FILE).write_text('{"text": {"count": 3}}')
    with pytest.raises(ValueError, match="mean"):
        read_reference(tmp_path)


def test_a_test_set_that_does_not_spread_is_no_reference(tmp_path: Path) -> None:
    same, other = np.ones((5, 4), np.float32), np.eye(4, dtype=np.float32)
    assert make_reference({"text": same, "media": other[:1]}) == {}
    found = make_reference({"text": other, "media": same})
    assert found == {"text": EmbeddingStatistics.of(other)}
    for reference in (found, {}):
        write_reference(reference, tmp_path)
        assert read_reference(tmp_path) == reference
