"""Consistency training where the flow is linear: numbers from N(0, SPREAD^2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion import process, samplers
from unclip_jax.diffusion.consistency import (
    HUBER,
    consistency_losses,
    step_length,
    step_weight,
)
from unclip_jax.diffusion.schedule import make_schedule

SPREAD = 0.5
T = 240


def tables(schedule):
    bar = schedule.alphas_cumprod
    return np.sqrt(bar), np.sqrt(1 - bar)


def exact(schedule):
    """x_0 / x_t along the ODE: the standard deviations' ratio."""
    signal, sigma = tables(schedule)
    return SPREAD / np.sqrt(signal**2 * SPREAD**2 + sigma**2)


def trained(schedule, count):
    """The factors a_t with the least squared error, in closed form.

    E (a_t x_t - a_s x_s)^2 is least at a_s Cov(x_t, x_s) / Var x_t, from s = x_0 on.
    """
    signal, sigma = (
        np.append(table, end)
        for table, end in zip(tables(schedule), (1, 0), strict=True)
    )
    a = np.append(np.zeros(T), 1.0)  # index -1: x_0
    for t in range(T):
        s = max(t - step_length(T, count), -1)
        shared = signal[t] * signal[s] * SPREAD**2 + sigma[t] * sigma[s]
        a[t] = a[s] * shared / (signal[t] ** 2 * SPREAD**2 + sigma[t] ** 2)
    return a[:-1]


def mean_loss(schedule, count, a, huber):
    """Over the distribution of x_0 and noise, by Gauss and Hermite, and all t."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(4)  # exact to 7th powers
    x_0, noise = (g.reshape(-1, 1) for g in np.meshgrid(SPREAD * nodes, nodes))
    weights = np.outer(weights, weights).reshape(-1) / weights.sum() ** 2
    t = jnp.repeat(jnp.arange(T), len(x_0))
    s = t - step_length(T, count)
    x_0, noise = (jnp.tile(jnp.float32(x), (T, 1)) for x in (x_0, noise))
    x_t = process.q_sample(schedule, x_0, t, noise)
    x_s = process.q_sample(schedule, x_0, jnp.maximum(s, 0), noise)
    goal = jnp.where(s[:, None] < 0, x_0, a[jnp.maximum(s, 0)][:, None] * x_s)
    goal = jax.lax.stop_gradient(goal)
    losses = consistency_losses(schedule, count, t, a[t][:, None] * x_t, goal, huber)
    return (losses.reshape(T, -1) * weights).sum(1).mean()


@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_the_loss_is_least_at_the_closed_form(name):
    """With a wide Huber: the square, half of it over its width."""
    schedule, count = make_schedule(name, T), 12
    gradient = jax.jit(jax.grad(lambda a: 1e3 * mean_loss(schedule, count, a, 1e3)))
    best = trained(schedule, count)
    at_best = np.abs(gradient(jnp.float32(best)))
    assert at_best.max() < 2e-4 * np.abs(gradient(jnp.float32(0.9 * best))).max()


@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_finer_steps_come_nearer_to_the_flow(name):
    schedule = make_schedule(name, T)
    truth = exact(schedule)
    errors = [abs(trained(schedule, n)[-1] / truth[-1] - 1) for n in (15, 60, 240)]
    assert errors[0] < 0.3 and errors[2] < 0.02, errors
    assert 2.5 < errors[0] / errors[1] < 6 and 2.5 < errors[1] / errors[2] < 6, errors


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_few_steps_draw_the_data(steps):
    """With the flow's own map, the distribution is that of the data in any number."""
    schedule = make_schedule("cosine", T)
    factors = jnp.float32(exact(schedule))

    def predict(x, t):
        return process.interpret(schedule, "x0", x, t, factors[t][:, None] * x, None)

    keys = jax.random.split(jax.random.key(0), 20_000)
    x_T = samplers.normal(jax.random.split(jax.random.key(1), 20_000), (1,))
    timesteps = samplers.timesteps("consistency", schedule, steps)
    assert timesteps.tolist() == [T * i // steps - 1 for i in range(steps, 0, -1)]
    drawn = samplers.consistency(predict, schedule, x_T, timesteps, keys)
    assert np.std(drawn) == pytest.approx(SPREAD, rel=0.02)
    if steps == 1:
        np.testing.assert_allclose(drawn, exact(schedule)[-1] * x_T, rtol=1e-5)


def test_the_distance_is_the_pseudo_huber():
    schedule, rng = make_schedule("flow", T), np.random.default_rng(0)
    a, b = (rng.standard_normal((3, 2, 2, 3)).astype(np.float32) for _ in range(2))
    t = np.array([0, 100, T - 1])
    found = consistency_losses(schedule, 24, jnp.asarray(t), a, b)
    norm = np.square(np.float64(a) - b).sum((1, 2, 3))
    distance = np.sqrt((norm + 12 * HUBER**2) / 12) - HUBER
    u = np.append((np.arange(T) + 0.5) / T, 0)
    weight = 1 / (u[:-1] - u[np.maximum(np.arange(T) - 10, -1)])
    np.testing.assert_allclose(step_weight(schedule, 24), weight / weight.mean())
    np.testing.assert_allclose(found, distance * (weight / weight.mean())[t], 1e-5)
