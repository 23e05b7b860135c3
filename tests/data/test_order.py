"""The order of examples: every one once an epoch, a function of (seed, step) alone."""

import numpy as np
import pytest

from unclip_jax.data import order

SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 100, 101, 1000, 1023, 1025, 4097, 50_000)


@pytest.mark.parametrize("n", SIZES)
def test_it_is_a_bijection(n):
    for key in (0, 1, 2**63, order.make_key(3, 4)):
        got = order.permute(np.arange(n), n, np.uint64(key))
        assert got.dtype == np.int64
        assert np.array_equal(np.sort(got), np.arange(n))


def test_one_index_alone_is_the_same_as_among_all():
    n, key = 1009, order.make_key(5)
    got = order.permute(np.arange(n), n, key)
    for i in (0, 1, 500, 1008):
        assert order.permute([i], n, key)[0] == got[i]


@pytest.mark.parametrize("n, batch", [(10, 3), (64, 16), (1000, 37), (7, 7), (5, 12)])
def test_each_epoch_shows_every_example_once(n, batch):
    steps = -(-4 * n // batch)
    seen = np.concatenate([order.batch_indices(1, s, batch, n) for s in range(steps)])
    for epoch in range(4):
        part = seen[epoch * n : (epoch + 1) * n]
        assert np.array_equal(np.sort(part), np.arange(n))


def test_epochs_and_seeds_differ():
    n = 1000
    runs = {
        (seed, epoch): order.batch_indices(seed, epoch, n, n)
        for seed in (0, 1, 2, 2**40, -1)
        for epoch in (0, 1, 2)
    }
    runs = list(runs.values())
    for i, a in enumerate(runs):
        for b in runs[:i]:
            assert (a == b).mean() < 0.01


def test_the_batch_does_not_depend_on_how_the_steps_are_cut():
    n = 997
    small = np.concatenate([order.batch_indices(9, s, 8, n) for s in range(100)])
    large = np.concatenate([order.batch_indices(9, s, 32, n) for s in range(25)])
    assert np.array_equal(small, large)


def test_far_steps_cost_no_more():
    batch, n = 4096, 10**9 + 7
    got = order.batch_indices(0, 10_000_000, batch, n)
    assert got.min() >= 0 and got.max() < n
    place = 10_000_000 * batch
    epoch, place = divmod(place + 17, n)
    assert got[17] == order.permute([place], n, order.make_key(0, epoch))[0]


def test_neighbours_are_spread_evenly():
    n = 40_000
    got = order.batch_indices(0, 0, n, n).astype(float)
    # independent uniform draws: correlation ~ n ** -0.5 = 0.005
    assert abs(np.corrcoef(got[:-1], got[1:])[0, 1]) < 0.025
    assert abs(np.corrcoef(got, np.arange(n))[0, 1]) < 0.025
    assert abs(np.mean(np.abs(np.diff(got))) / n - 1 / 3) < 0.02
    # 64 cells of (place, value): chi squared with 49 degrees of freedom
    cells, _, _ = np.histogram2d(np.arange(n), got, bins=8)
    chi = ((cells - n / 64) ** 2 / (n / 64)).sum()
    assert chi < 100
    low_bits = got.astype(int) % 16
    counts = np.bincount(low_bits[:4000], minlength=16)
    assert ((counts - 250) ** 2 / 250).sum() < 50


def test_known_order_stays():
    # Saved runs rely on it: a change here is a change of every run's data.
    got = order.batch_indices(seed=0, step=3, batch_size=8, num_examples=100)
    assert got.tolist() == KNOWN


KNOWN = [15, 79, 57, 85, 42, 4, 77, 67]


def test_bad_numbers_are_refused():
    with pytest.raises(ValueError, match="empty"):
        order.batch_indices(0, 0, 4, 0)
    with pytest.raises(ValueError, match="step must be >= 0"):
        order.batch_indices(0, -1, 4, 10)
    with pytest.raises(ValueError, match=r"\[0, 10\)"):
        order.permute([10], 10, np.uint64(0))
