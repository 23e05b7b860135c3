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


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_learned_variance_loss_is_finite_at_both_ends(dtype):
    x_0 = images(2)
    t, noise = jnp.array([0, 999]), noise_like(x_0)
    x_t = process.q_sample(SCHEDULE, x_0, t, noise)

    def loss(output):
        losses = process.training_losses(
            SCHEDULE, "epsilon", x_0, x_t, t, noise, output.astype(dtype)
        )
        return (losses["mse"] + losses["vb"]).mean()

    for size in (0.0, 1.0, 100.0):
        output = size * jnp.concatenate([noise_like(x_0)] * 2, axis=-1)
        value, grad = jax.value_and_grad(loss)(output)
        assert np.isfinite(value) and np.isfinite(grad).all()


def test_the_bound_trains_the_variance_only():
    x_0 = images(2)
    t, noise = jnp.array([3, 500]), noise_like(x_0)
    x_t = process.q_sample(SCHEDULE, x_0, t, noise)
    output = jnp.concatenate([noise_like(x_0)] * 2, axis=-1)
    grad = jax.grad(
        lambda out: process.training_losses(
            SCHEDULE, "epsilon", x_0, x_t, t, noise, out
        )["vb"].sum()
    )(output)
    assert (grad[..., :3] == 0).all() and (grad[..., 3:] != 0).any()


def test_min_snr_makes_every_parameterisation_weigh_the_same_x0_error():
    """Weight times (d output / d x0)^2 is min(SNR, gamma) for all of them."""
    t = jnp.array([10, 300, 700, 990])
    bar = SCHEDULE.alphas_cumprod[np.asarray(t)]
    slope = {"x0": 1.0, "epsilon": bar / (1 - bar), "v": 1 / (1 - bar)}
    for prediction, squared in slope.items():
        weight = process.min_snr_weight(SCHEDULE, prediction, t, 5.0)
        np.testing.assert_allclose(
            weight * squared, np.minimum(bar / (1 - bar), 5), rtol=1e-4
        )


def test_to_uint8_rounds_and_clips():
    x = jnp.array([-2.0, -1.0, 0.0, 1.0, 3.0])
    assert process.to_uint8(x).tolist() == [0, 0, 128, 255, 255]
