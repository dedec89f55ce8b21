"""The clips of a step: a function of seed and step, with a permutation per epoch and a share per data set."""

import numpy as np
import pytest

from clip4vla.clips.sampler import StepSampler


def test_an_epoch_has_every_clip_once_but_for_the_incomplete_last_batch() -> None:
    sampler = StepSampler((11, 6), None, batch_size=5, epochs=4, seed=0)
    assert (sampler.steps_per_epoch, sampler.steps) == (3, 12)
    epochs = [np.concatenate([sampler.indices(3 * epoch + i) for i in range(3)]) for epoch in range(4)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 15
        assert set(epoch.tolist()) <= set(range(17))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_the_order_is_a_function_of_seed_and_step_alone() -> None:
    one, again, other = (StepSampler((50, 7), None, 8, 2, seed) for seed in (1, 1, 2))
    backwards = [again.indices(step).tolist() for step in reversed(range(one.steps))][::-1]
    assert [one.indices(step).tolist() for step in range(one.steps)] == backwards
    assert one.indices(0).tolist() != other.indices(0).tolist()


def test_weights_give_each_data_set_its_share() -> None:
    sampler = StepSampler((100, 20, 30), (1.0, 3.0, 2.0), batch_size=10, epochs=1, seed=0)
    assert sum(sampler.quotas()) == 150
    drawn = np.concatenate([sampler.indices(step) for step in range(sampler.steps)])
    counts = [int(((drawn >= low) & (drawn < high)).sum()) for low, high in ((0, 100), (100, 120), (120, 150))]
    assert counts == sampler.quotas() == [25, 75, 50]
    assert len(set(drawn[drawn < 100].tolist())) == 25  # fewer than there are: none twice
    repeats = np.bincount(drawn[(drawn >= 100) & (drawn < 120)] - 100, minlength=20)
    assert set(repeats.tolist()) == {3, 4}  # more than there are: as often as any other, give or take one


def test_fewer_clips_than_a_batch_are_one_batch() -> None:
    sampler = StepSampler((3,), None, batch_size=8, epochs=2, seed=0)
    assert (sampler.clips_per_step, sampler.steps) == (3, 2)
    assert sorted(sampler.indices(1).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("sizes", "weights"), [((50,), None), ((50, 7), None), ((100, 20, 30), (1.0, 3.0, 2.0)), ((9, 0), None)]
)
def test_an_epoch_is_the_shuffled_draws_of_all_data_sets(
    sizes: tuple[int, ...], weights: tuple[float, ...] | None
) -> None:
    sampler = StepSampler(sizes, weights, batch_size=1, epochs=2, seed=3)
    for epoch in range(2):
        rng = np.random.default_rng((3, epoch))
        parts = []
        for number, quota in enumerate(sampler.quotas()):
            rounds = -(-quota // max(1, sizes[number]))
            drawn = [rng.permutation(sizes[number]) for _ in range(rounds)]
            parts += [sum(sizes[:number]) + clip for clip in [*np.concatenate(drawn)][:quota]] if drawn else []
        expected = rng.permutation(parts).tolist()
        steps = range(epoch * len(expected), (epoch + 1) * len(expected))
        assert [sampler.indices(step).item() for step in steps] == expected
