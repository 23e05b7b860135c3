"""Metrics between (or of) sets of features, against loops and closed forms."""

import numpy as np
import pytest

from unclip_jax.evaluation.metrics import distances
from unclip_jax.evaluation.metrics.cmmd import cmmd
from unclip_jax.evaluation.metrics.density_coverage import density_coverage
from unclip_jax.evaluation.metrics.inception_score import inception_score
from unclip_jax.evaluation.metrics.kid import kid, polynomial_mmd2
from unclip_jax.evaluation.metrics.pairwise_distance import pairwise_distance
from unclip_jax.evaluation.metrics.precision_recall import precision_recall
from unclip_jax.evaluation.metrics.vendi import vendi


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def table(x, y):
    return np.array([[np.linalg.norm(a - b) for b in y] for a in x])


def radii(x, k):
    d = table(x, x)
    np.fill_diagonal(d, np.inf)
    return np.sort(d, axis=1)[:, k - 1]


def test_distances_of_equal_rows_are_exactly_zero():
    x = normal(0, 10, 700) + 100.0
    d2 = distances.squared_distances(x, x.copy())
    assert (np.diag(d2) == 0).all() and (d2[0, 1:] > 0).all()
    np.testing.assert_allclose(np.sqrt(d2), table(x, x), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("block", [8, 1000, 2**26])
def test_precision_recall_by_loops(monkeypatch, block):
    monkeypatch.setattr(distances, "BLOCK_BYTES", block)
    fake, real = normal(1, 40, 5) * 0.7 + 0.3, normal(2, 55, 5)
    d = table(fake, real)
    precision = np.mean([(row <= radii(real, 3)).any() for row in d])
    recall = np.mean([(col <= radii(fake, 3)).any() for col in d.T])
    got = precision_recall(fake, real, k=3)
    assert got == pytest.approx((precision, recall))
    assert 0 < recall < precision <= 1


@pytest.mark.parametrize("block", [8, 1000, 2**26])
def test_density_coverage_by_loops(monkeypatch, block):
    monkeypatch.setattr(distances, "BLOCK_BYTES", block)
    fake, real = normal(3, 40, 5) * 0.6, normal(4, 55, 5)
    d, r = table(fake, real), radii(real, 5)
    density = np.mean((d < r).sum(axis=1)) / 5
    coverage = np.mean(d.min(axis=0) < r)
    assert density_coverage(fake, real, k=5) == pytest.approx((density, coverage))
    assert density > 0.5 and 0 < coverage < 1


def test_copies_and_far_away_sets():
    x = normal(5, 30, 4)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert density_coverage(x, x)[1] == 1.0
    assert precision_recall(x + 100, x) == (0.0, 0.0)
    assert density_coverage(x + 100, x) == (0.0, 0.0)
    # Duplicated pictures: balls of radius 0 hold their own copies (<=) or not (<).
    same = np.repeat(normal(6, 3, 4), 10, axis=0)
    assert precision_recall(same, same) == (1.0, 1.0)
    assert density_coverage(same, same) == (0.0, 0.0)
    with pytest.raises(ValueError, match="at least 4"):
        precision_recall(x[:3], x)


def test_kid_by_loops():
    x, y = normal(7, 12, 3), normal(8, 9, 3) + 0.5
    k = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
    xx = np.mean([k(x[i], x[j]) for i in range(12) for j in range(12) if i != j])
    yy = np.mean([k(y[i], y[j]) for i in range(9) for j in range(9) if i != j])
    xy = np.mean([k(a, b) for a in x for b in y])
    assert polynomial_mmd2(x, y) == pytest.approx(xx + yy - 2 * xy)
    # Subsets as large as the sets are the sets: every subset gives that one value.
    mean, std = kid(x[:9], y, subsets=4, subset_size=9)
    assert mean == pytest.approx(polynomial_mmd2(x[:9], y))
    assert std == pytest.approx(0, abs=1e-12)
    with pytest.raises(ValueError, match="between 2 and 9"):
        kid(x, y)


def test_kid_is_unbiased():
    x, y = normal(9, 2000, 8), normal(10, 2000, 8)
    mean, _ = kid(x, y, subsets=50, subset_size=50)
    assert abs(mean) < 0.02 < kid(x, y + 0.3, subsets=50, subset_size=50)[0]


def test_inception_score_closed_forms():
    # Certain and evenly spread over C classes: C.  All alike: 1.
    sure = np.tile(np.eye(5) * 200.0, (40, 1))
    mean, _ = inception_score(sure, splits=1)
    assert mean == pytest.approx(5.0)
    assert inception_score(np.zeros((20, 7)))[0] == pytest.approx(1.0)
    logits = normal(11, 50, 4) + 50.0
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    kl = np.mean([np.sum(q * np.log(q / p.mean(0))) for q in p])
    mean, std = inception_score(logits, splits=1)
    assert mean == pytest.approx(np.exp(kl)) and std == 0
    assert inception_score(logits, splits=10)[1] > 0


def test_cmmd_is_the_published_formula():
    x, y = normal(12, 30, 6), normal(13, 20, 6) + 0.2
    xn = x / np.linalg.norm(x, axis=1, keepdims=True)
    yn = y / np.linalg.norm(y, axis=1, keepdims=True)
    k = lambda a, b: np.exp(-(table(a, b) ** 2) / 200).mean()  # noqa: E731
    want = 1000 * (k(xn, xn) + k(yn, yn) - 2 * k(xn, yn))
    assert cmmd(x, y) == pytest.approx(want, rel=1e-9)
    assert cmmd(x, x) == 0.0
    assert cmmd(x * 5, y) == pytest.approx(want, rel=1e-9)


def test_vendi_counts_distinct_pictures():
    assert vendi(np.eye(6)) == pytest.approx(6)
    assert vendi(np.repeat(np.eye(6)[:3], 4, axis=0)) == pytest.approx(3)
    assert vendi(np.ones((9, 4))) == pytest.approx(1)
    x = normal(14, 7, 20)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    w = np.linalg.eigvalsh(u @ u.T / 7)
    assert vendi(x) == pytest.approx(np.exp(-np.sum(w * np.log(w))))
    assert vendi(np.repeat(x, 5, axis=0)) == pytest.approx(vendi(x))


def test_pairwise_distance_by_loops():
    x = normal(15, 12, 5)
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    want = np.mean([1 - u[i] @ u[j] for i in range(12) for j in range(12) if i != j])
    assert pairwise_distance(x) == pytest.approx(want)
    assert pairwise_distance(np.ones((4, 3))) == pytest.approx(0)


@pytest.mark.parametrize("metric", [precision_recall, density_coverage, kid, cmmd])
def test_broken_pictures_are_named(metric):
    x = normal(16, 20, 4)
    broken = x.copy()
    broken[[2, 7]] = np.inf
    with pytest.raises(ValueError, match="rows 2, 7"):
        metric(broken, x)
