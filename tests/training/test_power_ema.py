"""Averages by power functions against integrals and sums taken by brute force."""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.training import toy
from unclip_jax.training import power_ema
from unclip_jax.training.checkpoint import load_run, open_run
from unclip_jax.training.loop import train
from unclip_jax.training.posthoc_ema import open_posthoc


def profile(tau, std, step):
    """The weight of parameters of time tau, equation 121; gamma by bisection."""
    low, high = 0.0, 1e5
    for _ in range(200):
        g = (low + high) / 2
        above = ((g + 1) / ((g + 2) ** 2 * (g + 3))) ** 0.5 > std
        low, high = (g, high) if above else (low, g)
    return np.where(tau <= step, (g + 1) * (tau / step) ** g / step, 0)


def grid(step, count=400_000):
    return (np.arange(count) + 0.5) * step / count


@pytest.mark.parametrize("std", [0.05, 0.1, 0.25])
def test_the_standard_deviation_is_that_of_the_profile(std):
    tau = grid(1.0)
    p = profile(tau, std, 1.0) / len(tau)
    mean = (p * tau).sum()
    assert np.sqrt((p * (tau - mean) ** 2).sum()) == pytest.approx(std, rel=1e-5)
    gamma = power_ema.exponent(std)
    density = (gamma + 1) * tau**gamma / len(tau)
    np.testing.assert_allclose(density.sum(), 1, rtol=1e-6)
    np.testing.assert_allclose(density, p, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("a, b", [((0.05, 90), (0.1, 100)), ((0.1, 100), (0.2, 40))])
def test_inner_products_are_the_integrals(a, b):
    tau = grid(100.0)
    product = profile(tau, *a) * profile(tau, *b)
    wanted = product.sum() * 100 / len(tau)
    gammas = power_ema.exponent(a[0]), power_ema.exponent(b[0])
    found = power_ema.inner_product(gammas[0], a[1], gammas[1], b[1])
    np.testing.assert_allclose(found, wanted, rtol=1e-4)


def test_the_running_average_has_the_weights_of_its_profile():
    values = np.random.default_rng(0).standard_normal(30)
    update = jax.jit(power_ema.update)
    averages = {"0.05": {"a": jnp.float32(9)}, "0.1": {"a": jnp.float32(9)}}
    for step, value in enumerate(values):
        averages = update(averages, {"a": jnp.float32(value)}, jnp.int32(step))
    for std, found in averages.items():
        gamma = power_ema.exponent(float(std))
        edges = (np.arange(31) / 30) ** (gamma + 1)  # the integral over each step
        wanted = (np.diff(edges) * values).sum()
        np.testing.assert_allclose(found["a"], wanted, rtol=2e-5)
    assert power_ema.update(None, {}, jnp.int32(0)) is None


@pytest.mark.parametrize("std, most", [(0.08, 0.05), (0.15, 0.15), (0.02, 0.8)])
def test_reconstructed_profiles_are_the_nearest_by_numbers(std, most):
    """Beside a least squares solution on the integration grid itself."""
    snapshots = [(s, v) for s in (25, 50, 75, 100) for v in (0.05, 0.1)]
    found, error = power_ema.weights(snapshots, std, 100)
    tau = grid(100.0, 20_000)
    columns = np.stack([profile(tau, v, s) for s, v in snapshots], 1)
    wanted = profile(tau, std, 100)
    best = np.linalg.lstsq(columns, wanted, rcond=None)[0]
    norm = np.linalg.norm(wanted)
    reached = np.linalg.norm(columns @ found - wanted) / norm
    assert found.sum() == pytest.approx(1)
    assert error == pytest.approx(reached, rel=0.02, abs=1e-3) and error < most
    assert reached < np.linalg.norm(columns @ best - wanted) / norm * 1.2 + 1e-3


def test_a_profile_that_was_kept_is_itself():
    found, error = power_ema.weights([(50, 0.1), (100, 0.05), (100, 0.1)], 0.1, 100)
    np.testing.assert_allclose(found, [0, 0, 1], atol=1e-6)
    assert error < 1e-5


@pytest.mark.parametrize("std", [0.0, 0.3, -1.0])
def test_impossible_standard_deviations_are_refused(std):
    with pytest.raises(ValueError, match="at most 0.2887"):
        power_ema.exponent(std)


@pytest.mark.slow
def test_a_run_is_averaged_afterwards(tmp_path):
    """At step 10 of 12, beside the sum over the parameters of every step."""
    options = dict(every=1, keep=1, keep_every=1)
    config = toy.make_config(12, ema_profiles=(0.05, 0.1), checkpoint=options)
    train(config, tmp_path, stage=toy.Stage(), data=toy.Data(), stream=io.StringIO())
    for std, close in ((0.1, 1e-6), (0.08, 3e-4)):
        shapes, read, meta, error = open_posthoc(tmp_path, std, 10)
        assert meta["step"] == 10 and error < 0.02
        edges = (np.arange(11) / 10) ** (power_ema.exponent(std) + 1)
        wanted = np.float64(0)
        for i in range(10):
            kernel = open_run(tmp_path, "params", i + 1)[1]("in/kernel")
            wanted = wanted + (edges[i + 1] - edges[i]) * kernel
        assert shapes["in"]["kernel"].shape == wanted.shape
        np.testing.assert_allclose(read("in/kernel"), wanted, atol=close)
    assert set(load_run(tmp_path)[0]) == {"in", "out"}


def test_a_run_without_profiles_says_so(tmp_path):
    config = toy.make_config(2)
    train(config, tmp_path, stage=toy.Stage(), data=toy.Data(), stream=io.StringIO())
    with pytest.raises(ValueError, match="config.ema_profiles"):
        open_posthoc(tmp_path, 0.1)
