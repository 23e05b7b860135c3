"""Streamed sums give numpy's mean and covariance, however they are divided."""

import numpy as np

from unclip_jax.gaussian import Gaussian, GaussianSums


def test_sums_stream_merge_and_are_read_back():
    x = np.random.default_rng(0).normal(size=(3000, 4)).astype(np.float32) + 5
    parts = [GaussianSums(4), GaussianSums(4)]
    for i, row in enumerate(x):
        parts[i % 2].add(row)
    total = GaussianSums(4)
    for part in parts:
        total.merge(GaussianSums.from_state(part.state()))
    total.merge(GaussianSums(4))  # nothing
    statistics = total.statistics()
    wide = x.astype(np.float64)
    assert statistics["count"] == 3000
    np.testing.assert_allclose(statistics["mean"], wide.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics["cov"], np.cov(wide.T), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(statistics["std"], wide.std(0, ddof=1), rtol=1e-8)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    np.testing.assert_allclose(statistics["mean_norm"], norms.mean(), rtol=1e-12)
    unit = wide / norms
    np.testing.assert_allclose(statistics["unit_mean"], unit.mean(0), rtol=1e-12)
    np.testing.assert_allclose(statistics["unit_cov"], np.cov(unit.T), atol=1e-12)


def test_sums_of_an_older_version_know_nothing_of_unit_embeddings():
    parts = [GaussianSums(4), GaussianSums(4)]
    for part in parts:
        for row in np.random.default_rng(1).normal(size=(20, 4)):
            part.add(row)
    state = parts[0].state()
    old = {name: state[name] for name in ("count", "norm", "first", "second")}
    parts[1].merge(GaussianSums.from_state(old))
    statistics = parts[1].statistics()
    assert "unit_mean" not in statistics and np.isfinite(statistics["cov"]).all()


def test_float32_embeddings_are_summed_in_float64():
    x = np.full((1000, 2), 16777217 / 16777216, np.float32) * 4096
    sums = GaussianSums(2)
    for row in x:
        sums.add(row)
    mean = sums.statistics()["mean"]
    assert mean.dtype == np.float64
    np.testing.assert_array_equal(mean, x[0].astype(np.float64))


def test_projection_keeps_the_directions_of_most_variance():
    gaussian = Gaussian(np.array([1.0, 2.0, 3.0]), np.diag([1.0, 9.0, 4.0]))
    z = np.array([[5.0, 6.0, 7.0]], np.float32)
    projected = gaussian.project(z, 2)
    assert projected.dtype == np.float32
    np.testing.assert_allclose(projected, [[1, 6, 7]], atol=1e-6)
    np.testing.assert_allclose(gaussian.project(z, 3), z, atol=1e-5)
