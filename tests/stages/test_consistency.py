"""The prior trained for consistency: its loss by hand, its options, its drawing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.stages.test_stages import batch, make_config, make_params, make_stage
from unclip_jax.diffusion import process
from unclip_jax.diffusion.consistency import step_weight
from unclip_jax.stages.decoder import Diffusion

OPTIONS = dict(consistency=10, sampler="consistency", sampling_steps=2)


@pytest.fixture(scope="module")
def prior():
    config = make_config("prior")
    config.diffusion.update(OPTIONS)
    stage = make_stage(config)
    return stage, make_params(stage), batch(stage)


def test_the_loss_is_that_of_a_step_along_the_same_noise(prior):
    stage, params, data = prior
    key = jax.random.key(3)
    found, metrics = jax.jit(stage.loss)(params, key, data)

    rng_t, rng_noise, rng_drop, _ = jax.random.split(key, 4)  # dropout is 0
    schedule = stage.diffusion.noise_schedule
    x_0 = np.asarray(stage.x_0(params, data))
    t = np.asarray(jax.random.randint(rng_t, (8,), 0, 1000))
    noise = np.asarray(jax.random.normal(rng_noise, x_0.shape))
    inputs = stage.training_inputs(data, [rng_drop])
    signal = np.append(np.sqrt(schedule.alphas_cumprod), 1.0)
    sigma = np.append(np.sqrt(1 - schedule.alphas_cumprod), 0.0)

    def x0_at(times):
        x = signal[times][:, None] * x_0 + sigma[times][:, None] * noise
        x, times = jnp.float32(x), jnp.asarray(np.maximum(times, 0))
        return np.asarray(stage.model.apply({"params": params}, x, times, *inputs))

    s = np.maximum(t - 100, -1)
    goal = np.where(s[:, None] < 0, x_0, x0_at(s))
    root = np.sqrt(np.square(x0_at(t) - goal).mean(1) + 0.00054**2) - 0.00054
    u = sigma / (signal + sigma)
    every = np.arange(1000)
    weight = 1 / (u[every] - u[np.maximum(every - 100, -1)])
    wanted = (root * (weight / weight.mean())[t]).mean()
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert set(metrics) >= {"cosine"}


def test_nothing_flows_back_from_the_earlier_timestep(prior):
    """Of the model a x_t the slope is x_t, not x_t - x_s."""
    stage, _, _ = prior
    schedule = stage.diffusion.noise_schedule
    x_0 = jnp.zeros((8, 12))
    t, noise = jnp.full(8, 900), jnp.ones((8, 12))
    x_t = process.q_sample(schedule, x_0, t, noise)

    def loss(a):
        def model(x, t):
            return a * x

        output = model(x_t, t)
        found = stage._consistency(10, model, output, x_0, x_t, t, noise)
        return found[1]["consistency"]

    sigma = np.sqrt(1 - schedule.alphas_cumprod)
    error = 0.5 * (sigma[900] - sigma[800])
    slope = error / np.hypot(error, 0.00054) * sigma[900]
    weight = step_weight(schedule, 10)[900]
    found = jax.grad(loss)(jnp.float32(0.5))
    np.testing.assert_allclose(found, weight * slope, rtol=1e-3)


def test_it_is_looked_at_in_its_own_steps(prior):
    stage, params, data = prior
    assert stage.diffusion.preview_sampler(16)[1].tolist() == [999, 499]
    drawn = jax.jit(stage.embed)(params, jax.random.key(0), data)
    assert np.isfinite(drawn["predicted"]).all()
    assert stage.export()["config"]["diffusion"]["consistency"] == 10


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"sampler": "ddim"}, "sampler='consistency'"),
        ({"sampling_steps": None}, "sampling_steps"),
        ({"prediction": "epsilon"}, "where there is no signal"),
        ({"loss_space": "v"}, "a loss of its own"),
        ({"consistency": 1}, "from 2 to num_steps=1000"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        Diffusion(**{"prediction": "v", **OPTIONS, **changes})
