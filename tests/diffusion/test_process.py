import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion import process
from unclip_jax.diffusion.schedule import make_schedule

SCHEDULE = make_schedule("cosine")
RNG = np.random.default_rng(0)


def images(n=6):
    return jnp.asarray(RNG.uniform(-1, 1, (n, 4, 4, 3)), jnp.float32)


def noise_like(x):
    return jnp.asarray(RNG.standard_normal(x.shape), jnp.float32)


@pytest.mark.parametrize("prediction", process.PREDICTIONS)
@pytest.mark.parametrize("t", [0, 1, 400, 900])
def test_the_target_of_every_parameterisation_gives_back_x0(prediction, t):
    x_0 = images()
    noise, t = noise_like(x_0), jnp.full(len(x_0), t)
    x_t = process.q_sample(SCHEDULE, x_0, t, noise)
    output = process.target(SCHEDULE, prediction, x_0, t, noise)
    pred = process.interpret(SCHEDULE, prediction, x_t, t, output, None)
    np.testing.assert_allclose(pred.x0, x_0, atol=2e-5)
    np.testing.assert_allclose(pred.epsilon, noise, atol=2e-3)


@pytest.mark.parametrize("t,s", [(999, 998), (999, 957), (500, 499), (42, 0), (1, 0)])
def test_posterior_is_bayes_rule(t, s):
    """q(x_s | x_t, x_0) from the two Gaussians it is made of, in float64."""
    bar = SCHEDULE.alphas_cumprod
    x_0, x_t = 0.3, -1.1
    alpha = bar[t] / bar[s]  # x_t | x_s ~ N(sqrt(alpha) x_s, 1 - alpha)
    precision = alpha / (1 - alpha) + 1 / (1 - bar[s])
    mean = np.sqrt(alpha) * x_t / (1 - alpha) + np.sqrt(bar[s]) * x_0 / (1 - bar[s])
    row = lambda v: jnp.full((1, 1), v, jnp.float32)  # noqa: E731
    post = process.posterior(
        SCHEDULE, row(x_0), row(x_t), jnp.array([t]), jnp.array([s])
    )
    np.testing.assert_allclose(post.mean[0, 0], mean / precision, rtol=1e-4)
    np.testing.assert_allclose(post.log_variance[0, 0], -np.log(precision), atol=1e-4)


def test_posterior_of_the_last_step_is_x0():
    x_0 = images(1)
    post = process.posterior(
        SCHEDULE, x_0, noise_like(x_0), jnp.array([0]), jnp.array([-1])
    )
    np.testing.assert_allclose(post.mean, x_0, atol=1e-5)
    assert np.isfinite(post.log_variance).all()


def test_kl_is_the_expected_log_ratio():
    mean_1, logvar_1, mean_2, logvar_2 = 0.2, -1.0, -0.5, 0.3
    x = mean_1 + np.exp(logvar_1 / 2) * RNG.standard_normal(400_000)

    def log_density(x, mean, logvar):
        return -0.5 * (np.log(2 * np.pi) + logvar + (x - mean) ** 2 / np.exp(logvar))

    ratio = log_density(x, mean_1, logvar_1) - log_density(x, mean_2, logvar_2)
    kl = process.normal_kl(mean_1, logvar_1, mean_2, logvar_2)
    np.testing.assert_allclose(kl, ratio.mean(), rtol=0.02)


def test_discretized_likelihood_sums_to_one_over_the_256_values():
    values = jnp.arange(256, dtype=jnp.float32) / 127.5 - 1
    for mean, log_scale in ((0.1, -2.0), (-0.99, -1.0), (0.9, -3.0)):
        logp = process.discretized_gaussian_log_likelihood(values, mean, log_scale)
        np.testing.assert_allclose(np.exp(logp).sum(), 1, atol=1e-4)


def test_discretized_likelihood_is_symmetric_and_exact_in_both_tails():
    """Against float64, where 1 - cdf would have lost everything in float32."""
    x, scale = np.array([-0.9, -0.5, 0.5, 0.9]), 0.15

    def cdf(z):
        return np.vectorize(math.erfc)(-z / math.sqrt(2)) / 2

    plus, minus = (cdf((-np.abs(x) + d) / scale) for d in (1 / 255, -1 / 255))
    logp = process.discretized_gaussian_log_likelihood(
        jnp.asarray(x, jnp.float32), 0.0, math.log(scale)
    )
    np.testing.assert_allclose(logp, np.log(plus - minus), rtol=2e-5)
    np.testing.assert_allclose(logp, logp[::-1], rtol=1e-6)


def test_kl_of_nearly_equal_variances_does_not_cancel():
    d = 1e-3  # the value is about d^2 / 4 = 2.5e-7, below float32's step at 1
    kl = process.normal_kl(jnp.float32(0), jnp.float32(-5 + d), 0.0, jnp.float32(-5))
    d = float(jnp.float32(-5 + d) - jnp.float32(-5))
    np.testing.assert_allclose(kl, 0.5 * (np.expm1(d) - d), rtol=1e-3)


@functools.cache
def loss_and_gradient(schedule, prediction, dtype):
    sched = make_schedule(schedule)

    def loss(output, x_0, t, noise):
        x_t = process.q_sample(sched, x_0, t, noise).astype(dtype)
        losses = process.training_losses(
            sched, prediction, x_0, x_t, t, noise, output.astype(dtype)
        )
        return (losses["mse"] + losses["vb"]).mean()

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize(
    "schedule,prediction,dtype",
    [
        ("cosine", "epsilon", jnp.float32),
        ("cosine", "epsilon", jnp.bfloat16),
        ("cosine", "x0", jnp.bfloat16),
        ("cosine", "v", jnp.bfloat16),
        ("linear", "epsilon", jnp.bfloat16),
    ],
)
def test_learned_variance_loss_is_finite_at_both_ends(schedule, prediction, dtype):
    """Whatever a model puts out, of any size, and for the extremes of the data."""
    rng = np.random.default_rng(1)
    t = jnp.array([0, 0, 1, 998, 999, 999])
    for _ in range(40):
        x_0 = rng.uniform(-1, 1, (6, 4, 4, 3))
        x_0 = np.where(rng.random(x_0.shape) < 0.2, np.sign(x_0), x_0)
        noise = rng.standard_normal(x_0.shape)
        size = 10 ** rng.uniform(-4, 4, (6, 1, 1, 6))  # each channel's
        output = size * rng.standard_normal((6, 4, 4, 6))
        arrays = (jnp.asarray(a, jnp.float32) for a in (output, x_0, noise))
        output, x_0, noise = arrays
        run = loss_and_gradient(schedule, prediction, dtype)
        value, grad = run(output, x_0, t, noise)
        assert np.isfinite(value) and np.isfinite(grad).all()


def test_the_bound_trains_the_variance_only():
    x_0 = images(2)
    t, noise = jnp.array([3, 500]), noise_like(x_0)
    x_t = process.q_sample(SCHEDULE, x_0, t, noise)
    output = jnp.concatenate([noise_like(x_0)] * 2, axis=-1)
    grad = jax.jit(
        jax.grad(
            lambda out: process.training_losses(
                SCHEDULE, "epsilon", x_0, x_t, t, noise, out
            )["vb"].sum()
        )
    )(output)
    assert (grad[..., :3] == 0).all() and (grad[..., 3:] != 0).any()


def test_min_snr_makes_every_parameterisation_weigh_the_same_x0_error():
    """Weight times (d output / d x0)^2 is min(SNR, gamma) for all of them."""
    t = np.array([10, 300, 700, 990])
    bar = SCHEDULE.alphas_cumprod[t]
    slope = {"x0": 1.0, "epsilon": bar / (1 - bar), "v": 1 / (1 - bar)}
    for prediction, squared in slope.items():
        weight = process.min_snr_weight(SCHEDULE, prediction, 5.0)[t]
        np.testing.assert_allclose(
            weight * squared, np.minimum(bar / (1 - bar), 5), rtol=1e-4
        )


@pytest.mark.parametrize("space", process.PREDICTIONS)
@pytest.mark.parametrize("prediction", process.PREDICTIONS)
def test_the_error_of_any_output_is_measured_in_any_space(prediction, space):
    """As if the output were turned into x_0, and that into what `space` predicts."""
    x_0 = images()
    noise, t = noise_like(x_0), jnp.array([120, 300, 450, 600, 800, 950])
    x_t = process.q_sample(SCHEDULE, x_0, t, noise)
    output = process.target(SCHEDULE, prediction, x_0, t, noise)
    output = output + 0.3 * noise_like(x_0)
    pred = process.interpret(SCHEDULE, prediction, x_t, t, output, None)
    moved = process.target(SCHEDULE, space, pred.x0, t, pred.epsilon)
    expected = (moved - process.target(SCHEDULE, space, x_0, t, noise)) ** 2
    losses = process.training_losses(
        SCHEDULE, prediction, x_0, x_t, t, noise, output, space=space
    )
    np.testing.assert_allclose(losses["mse"], expected.mean((1, 2, 3)), rtol=1e-3)


def test_the_weight_of_x0_is_bounded_near_the_image():
    schedule = make_schedule("flow")
    u = (np.arange(1000) + 0.5) / 1000
    weight = process.loss_weight(schedule, "x0", "flow")
    np.testing.assert_allclose(weight, 1 / np.maximum(u, 0.05) ** 2, rtol=1e-9)


def test_a_flow_is_the_derivative_of_the_straight_path():
    """d/du of (1 - u) x_0 + u epsilon, which x_t is up to a factor."""
    schedule, (x_0, noise) = make_schedule("flow"), (images(1), noise_like(images(1)))
    x_t = process.q_sample(schedule, x_0, jnp.array([300]), noise)
    u, h = 0.3005, 1e-2
    path = lambda u: (1 - u) * x_0 + u * noise  # noqa: E731
    np.testing.assert_allclose(x_t * np.hypot(u, 1 - u), path(u), atol=1e-6)
    velocity = (path(u + h) - path(u - h)) / (2 * h)
    output = process.target(schedule, "flow", x_0, jnp.array([300]), noise)
    np.testing.assert_allclose(output, velocity, atol=1e-4)


def test_to_uint8_rounds_and_clips():
    x = jnp.array([-2.0, -1.0, 0.0, 1.0, 3.0])
    assert process.to_uint8(x).tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("quantile,bound", [(0.995, 1.0), (0.8, 1.0), (0.9, 5.0)])
def test_dynamic_thresholding_is_imagens(quantile, bound):
    rng = np.random.default_rng(0)
    x0 = rng.standard_normal((3, 8, 8, 3)) * np.array([0.1, 2, 20])[:, None, None, None]
    expected = []
    for one in x0:
        s = max(np.quantile(np.abs(one), quantile), bound)
        expected.append(np.clip(one, -s, s) / s * bound)
    limit = process.dynamic_threshold(quantile, bound)
    t = jnp.array([100, 500, 999])
    x_t = noise_like(x0)
    pred = process.interpret(SCHEDULE, "x0", x_t, t, jnp.asarray(x0), limit)
    np.testing.assert_allclose(pred.x0, np.stack(expected), rtol=1e-5)
    bar = SCHEDULE.alphas_cumprod[np.asarray(t)].reshape(-1, 1, 1, 1)
    epsilon = (x_t - np.sqrt(bar) * pred.x0) / np.sqrt(1 - bar)
    np.testing.assert_allclose(pred.epsilon, epsilon, atol=1e-5)


def test_impossible_quantiles_are_refused():
    for quantile in (0, -0.1, 99.5, float("nan")):
        with pytest.raises(ValueError, match="expected more than 0, at most 1"):
            process.dynamic_threshold(quantile)
