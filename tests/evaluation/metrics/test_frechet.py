"""Frechet distance against scipy, closed forms, and the features' own SVD."""

import time

import numpy as np
import pytest
import scipy.linalg

from unclip_jax.evaluation.metrics import frechet


def features(seed, n, d, scale=None):
    x = np.random.default_rng(seed).normal(size=(n, d))
    return x * (np.arange(1, d + 1) ** -0.7 if scale is None else scale) + 0.1


def test_agrees_with_the_matrix_square_root():
    a = frechet.statistics(features(0, 300, 24))
    b = frechet.statistics(features(1, 200, 24, scale=1.3))
    root = scipy.linalg.sqrtm(a[1] @ b[1]).real
    want = np.sum((a[0] - b[0]) ** 2) + np.trace(a[1] + b[1] - 2 * root)
    assert frechet.frechet_distance(*a, *b) == pytest.approx(want, rel=1e-10)


def test_closed_form_of_commuting_covariances():
    m1, m2 = np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.0])
    v1, v2 = np.array([1.0, 4.0, 0.0]), np.array([9.0, 1.0, 0.25])
    want = 5.0 + np.sum((np.sqrt(v1) - np.sqrt(v2)) ** 2)
    got = frechet.frechet_distance(m1, np.diag(v1), m2, np.diag(v2))
    assert got == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("n,m", [(2, 2), (10, 30), (40, 7), (20, 200)])
def test_rank_deficient_agrees_with_the_features(n, m):
    d = 64
    x, y = features(2, n, d), features(3, m, d, scale=0.5)
    xc = (x - x.mean(0)) / np.sqrt(n - 1)
    yc = (y - y.mean(0)) / np.sqrt(m - 1)
    cross = np.linalg.svd(xc @ yc.T, compute_uv=False).sum()
    want = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.sum(xc**2) + np.sum(yc**2)
    want -= 2 * cross
    by_cov = frechet.frechet_distance(*frechet.statistics(x), *frechet.statistics(y))
    assert by_cov == pytest.approx(want, rel=1e-8)
    assert frechet.frechet_from_features(x, y) == pytest.approx(want, rel=1e-12)


def test_rank_deficient_with_a_steep_spectrum():
    # Full-rank steep spectra must not lose their tail to a threshold either.
    scale = 10.0 ** -np.linspace(0, 6, 50)
    x, y = features(4, 400, 50, scale), features(5, 400, 50, scale * 2)
    a, b = frechet.statistics(x), frechet.statistics(y)
    xc, yc = (x - a[0]) / np.sqrt(399), (y - b[0]) / np.sqrt(399)
    cross = np.linalg.svd(xc @ yc.T, compute_uv=False).sum()
    want = np.sum((a[0] - b[0]) ** 2) + np.sum(xc**2) + np.sum(yc**2) - 2 * cross
    assert frechet.frechet_distance(*a, *b) == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize("n", [2, 5, 100])
def test_identical_sets_are_at_distance_zero(n):
    x = features(6, n, 32)
    s = frechet.statistics(x)
    assert frechet.frechet_distance(*s, *s) == pytest.approx(0.0, abs=1e-12)
    assert frechet.frechet_from_features(x, x) == pytest.approx(0.0, abs=1e-12)


def test_constant_features_leave_the_distance_of_the_means():
    x, y = np.full((5, 8), 1.0), np.full((9, 8), 3.0)
    assert frechet.frechet_from_features(x, y) == pytest.approx(32.0)
    got = frechet.frechet_distance(*frechet.statistics(x), *frechet.statistics(y))
    assert got == pytest.approx(32.0)


def test_too_few_and_broken_pictures_are_named():
    x = features(10, 8, 4)
    with pytest.raises(ValueError, match="at least 2"):
        frechet.frechet_from_features(x[:1], x)
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match=r"NaN.*\n?.*rows 3"):
        frechet.frechet_from_features(x, features(10, 8, 4))
    with pytest.raises(ValueError, match="cov2 holds NaN"):
        frechet.frechet_distance(
            np.zeros(2), np.eye(2), np.zeros(2), np.full((2, 2), np.nan)
        )
    with pytest.raises(ValueError, match="same feature extractor"):
        frechet.frechet_from_features(features(0, 4, 3), features(0, 4, 5))


def test_few_pictures_warn():
    with pytest.warns(UserWarning, match="rank-deficient"):
        assert len(frechet.warn_few(20, 64)) == 1
    with pytest.warns(UserWarning, match="biased"):
        frechet.warn_few(2049, 2048)
    assert frechet.warn_few(10_000, 2048) == []


@pytest.mark.slow
def test_two_thousand_features_take_seconds():
    # One set stretched by 3/4: covariances commute, so the distance is known.
    x = features(11, 2200, 2048)
    a = frechet.statistics(x)
    b = 0.75 * a[0], 0.75**2 * a[1]
    clock = time.process_time()
    got = frechet.frechet_distance(*a, *b)
    assert time.process_time() - clock < 60  # of all cores; a few seconds if alone
    want = 0.25**2 * (a[0] @ a[0] + np.trace(a[1]))
    assert got == pytest.approx(want, rel=1e-9)
