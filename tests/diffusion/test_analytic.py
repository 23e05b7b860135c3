"""Analytic-DPM on a correlated Gaussian: every quantity is known in closed form."""

import jax
import numpy as np
import pytest

from tests.diffusion import gaussian
from unclip_jax.diffusion import analytic, process, samplers
from unclip_jax.diffusion.schedule import gather, make_schedule, strided_timesteps

SCHEDULE = make_schedule("cosine")
BAR = SCHEDULE.alphas_cumprod
EIGENVALUES = np.linalg.eigvalsh(gaussian.COVARIANCE)
# E ||epsilon||^2 / d: per axis (1 - abar) / (abar variance + 1 - abar)
EXACT = ((1 - BAR) / (BAR * EIGENVALUES[:, None] + 1 - BAR)).mean(0)


@pytest.fixture(scope="module")
def estimated():
    where = np.append(np.arange(0, 999, 37), 999)
    keys = jax.random.split(jax.random.key(0), 8192)
    run = jax.jit(
        lambda x, keys: analytic.square_epsilon(
            gaussian.predictor(SCHEDULE), SCHEDULE, x, where, keys
        )
    )
    of_each = run(gaussian.data(8192), keys)  # (8192, n)
    means = np.asarray(of_each, np.float64).mean(0)
    return analytic.interpolate(SCHEDULE, where, means), where


def test_the_statistic_is_the_scores(estimated):
    """16,384 numbers: 4 sigma of the mean of epsilon^2 - noise^2 is below 0.04."""
    table, where = estimated
    assert table.shape == (1000,) and table.dtype == np.float64
    np.testing.assert_allclose(table[where], EXACT[where], atol=0.04)
    np.testing.assert_allclose(table, EXACT, atol=0.05)  # linear in between
    late = where[where > 900]  # where epsilon is nearly the noise
    np.testing.assert_allclose(table[late], EXACT[late], atol=1e-3)


@pytest.mark.parametrize("n", [10, 50, 1000])
def test_the_variance_is_that_of_the_true_reverse_step(n):
    """q(x_s | x_t) by Bayes' rule in float64, its mean variance over the axes."""
    steps = strided_timesteps(1000, n)
    got = analytic.reverse_variance(SCHEDULE, steps, EXACT)[:-1]
    bar_t, bar_s = BAR[steps[:-1]], BAR[steps[1:]]
    alpha = bar_t / bar_s
    prior = bar_s * EIGENVALUES[:, None] + 1 - bar_s  # of x_s
    exact = 1 / (1 / prior + alpha / (1 - alpha))
    np.testing.assert_allclose(got, exact.mean(0), rtol=1e-5)


def test_the_formula_is_theorem_1():
    steps = strided_timesteps(1000, 25)
    got = analytic.reverse_variance(SCHEDULE, steps, EXACT)[:-1]
    bar_t, bar_s = BAR[steps[:-1]], BAR[steps[1:]]
    alpha, gamma = bar_t / bar_s, EXACT[steps[:-1]] / (1 - bar_t)
    small = (1 - bar_s) / (1 - bar_t) * (1 - alpha)
    root = np.sqrt((1 - bar_t) / alpha) - np.sqrt(1 - bar_s - small)
    expected = small + root**2 * (1 - (1 - bar_t) * gamma)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_the_bounds_are_theorem_2():
    steps = strided_timesteps(1000, 25)
    variance = analytic.reverse_variance
    bar_t, bar_s = BAR[steps[:-1]], BAR[steps[1:]]
    small = (1 - bar_s) / (1 - bar_t) * (1 - bar_t / bar_s)
    # an impossible statistic gives the bounds themselves
    low = variance(SCHEDULE, steps, np.full(1000, 7.0))[:-1]
    np.testing.assert_allclose(low, small)
    high = variance(SCHEDULE, steps, np.full(1000, -7.0))[:-1]
    np.testing.assert_allclose(high, small + _root(bar_t, bar_s, small) ** 2)
    width = np.sqrt(bar_s) - np.sqrt(1 - bar_s - small) * np.sqrt(bar_t / (1 - bar_t))
    bounded = variance(SCHEDULE, steps, np.zeros(1000), bound=0.8)[:-1]
    expected = np.minimum(high, small + width**2 * 0.8**2)
    np.testing.assert_allclose(bounded, expected, rtol=1e-6)


def _root(bar_t, bar_s, small):
    return np.sqrt((1 - bar_t) * bar_s / bar_t) - np.sqrt(1 - bar_s - small)


def test_the_last_noise_is_clipped_to_grey_levels():
    steps = strided_timesteps(1000, 25)
    plain = analytic.reverse_variance(SCHEDULE, steps, EXACT)
    clipped = analytic.reverse_variance(SCHEDULE, steps, EXACT, pixels=2)
    np.testing.assert_array_equal(clipped[:-2], plain[:-2])
    mean_size = np.sqrt(clipped[-2] * 2 / np.pi)  # E |sigma z|
    np.testing.assert_allclose(mean_size, 2 * 2 / 255)
    loose = analytic.reverse_variance(SCHEDULE, steps, EXACT, pixels=255)
    np.testing.assert_array_equal(loose, plain)


def test_few_steps_keep_the_spread_that_the_small_variance_loses():
    """Isotropic data, for which the analytic steps are the true ones, however few."""
    variance, steps = 0.25, strided_timesteps(1000, 6)
    gain = np.sqrt(BAR) * variance / (BAR * variance + 1 - BAR)
    statistic = (1 - BAR) / (BAR * variance + 1 - BAR)

    def predict(x, t):
        output = gather(gain, t, x.ndim) * x
        return process.interpret(SCHEDULE, "x0", x, t, output, None)

    def spread(kind, **options):
        keys = jax.random.split(jax.random.key(1), 4096)
        x_T = samplers.normal(keys, (4,))
        x = samplers.ddpm(predict, SCHEDULE, x_T, steps, keys, kind, **options)
        return x.var() / variance

    # 16,384 numbers: 4 sigma of their variance is 0.044
    exact = jax.jit(lambda: spread("analytic", statistic=statistic))()
    np.testing.assert_allclose(exact, 1, atol=0.045)
    assert jax.jit(lambda: spread("fixed_small"))() < 0.8


@pytest.mark.parametrize(
    "timesteps, means, message",
    [
        ([0, 5], [0.1, np.nan], "2 finite numbers"),
        ([0, 5], [0.1], "2 finite numbers"),
        ([0, 1000], [0.1, 0.2], "expected integers"),
        ([5, 0], [0.1, 0.2], "expected integers"),
    ],
)
def test_what_is_no_statistic_is_refused(timesteps, means, message):
    with pytest.raises(ValueError, match=message):
        analytic.interpolate(SCHEDULE, timesteps, means)
