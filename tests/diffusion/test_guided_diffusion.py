"""The process, its losses and its samplers against numbers of guided-diffusion.

judges/README.md says how they were made. Tolerances are relative to the largest number
of a comparison; theirs are float32 from float64 tables, as ours.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion.judges.smooth_model import output
from unclip_jax.diffusion import bound, process, samplers
from unclip_jax.diffusion.schedule import make_schedule, respace

JUDGES = pathlib.Path(__file__).parent / "judges"
with np.load(JUDGES / "guided_diffusion.npz") as file:
    THEIRS = dict(file)
T = jnp.asarray(THEIRS["t"], jnp.int32)
X, X_0, NOISE = (jnp.asarray(THEIRS[key]) for key in ("x", "x_0", "noise"))
SCHEDULES = ["cosine", "linear"]
posterior = jax.jit(process.posterior, static_argnums=0)


def close(ours, key, tolerance, rows=slice(None)):
    theirs, ours = THEIRS[key][rows], np.asarray(ours)[rows]
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * scale)


def predictor(schedule, clip, learned=False):
    def predict(x, t):
        raw = output(x, t, jnp, learned)
        return process.interpret(schedule, "epsilon", x, t, raw, clip)

    return predict


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("count", [100, 250, 1000])
def test_betas(name, count):
    theirs = THEIRS[f"betas/{name}/{count}"]
    np.testing.assert_allclose(make_schedule(name, count).betas, theirs, rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior(name):
    schedule = make_schedule(name)
    ones, zeros = jnp.ones((len(T), 1)), jnp.zeros((len(T), 1))
    of_x_0 = posterior(schedule, ones, zeros, T, T - 1)
    of_x_t = posterior(schedule, zeros, ones, T, T - 1)
    table = f"posterior/{name}/"
    for key, ours, tolerance in (
        ("mean_coef1", of_x_0.mean, 1e-6),
        ("mean_coef2", of_x_t.mean, 1e-6),
        ("log_variance_clipped", of_x_0.log_variance, 3e-6),
    ):
        close(ours[:, 0], table + key, tolerance)
    variance = np.exp(of_x_0.log_variance[1:, 0])  # at 0 only its logarithm is clipped
    np.testing.assert_allclose(variance, THEIRS[table + "variance"][1:], rtol=3e-5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("clip", [True, False])
def test_mean_and_learned_variance(name, clip):
    schedule = make_schedule(name)
    predict = jax.jit(predictor(schedule, 1.0 if clip else None, learned=True))
    pred = predict(X, T)
    post = posterior(schedule, pred.x0, X, T, T - 1)
    log_variance = process.learned_log_variance(post, pred.variance)
    table = f"p_mean_variance/{name}/{clip}/"
    close(pred.x0, table + "pred_xstart", 5e-6)
    close(pred.x0, table + "pred_xstart", 1e-5, THEIRS["t"] < 900)
    close(post.mean, table + "mean", 2e-6)
    close(log_variance, table + "log_variance", 3e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_fixed_variances(name):
    schedule = make_schedule(name)
    post = posterior(schedule, X_0, X, T, T - 1)
    table, ones = f"p_mean_variance/{name}/", jnp.ones_like(X)
    close(ones * post.log_variance, table + "FIXED_SMALL", 3e-6)
    # at t = 0 theirs is that of t = 1; no sampler adds noise there
    close(ones * post.log_beta, table + "FIXED_LARGE", 3e-6, THEIRS["t"] > 0)


@pytest.mark.parametrize("key", ["mse", "vb"])
def test_rescaled_mse_and_its_gradients(key):
    schedule = make_schedule("cosine")

    @jax.jit
    def losses(raw):
        x_t = process.q_sample(schedule, X_0, T, NOISE)
        terms = process.training_losses(schedule, "epsilon", X_0, x_t, T, NOISE, raw)
        return terms[key].sum(), terms[key]

    run = jax.value_and_grad(losses, has_aux=True)
    (_, terms), gradient = run(jnp.asarray(THEIRS["output"]))
    later = THEIRS["t"] > 0
    close(terms, f"losses/EPSILON/{key}", 1e-5, later)
    # at t = 999 the bounds of the variance are 2e-6 apart, with 1% of rounding
    close(gradient, f"losses/EPSILON/{key}/gradient", 2e-4, later)
    close(gradient, f"losses/EPSILON/{key}/gradient", 2e-5, later & (T < 999))
    # t = 0 is a likelihood, for which theirs approximates the normal CDF by tanh
    close(terms, f"losses/EPSILON/{key}", 1e-3)


def test_mse_of_x0_and_its_gradient():
    @jax.jit
    def loss(raw):
        losses = process.training_losses(
            make_schedule("cosine"), "x0", X_0, X, T, NOISE, raw
        )
        return losses["mse"].sum(), losses["mse"]

    raw = jnp.asarray(THEIRS["output"][:, :3])
    (_, mse), gradient = jax.value_and_grad(loss, has_aux=True)(raw)
    close(mse, "losses/START_X/mse", 1e-6)
    close(gradient, "losses/START_X/mse/gradient", 1e-6)


def test_prior_bits():
    ours = bound.prior_bits(make_schedule("cosine"), X_0)
    np.testing.assert_allclose(ours, THEIRS["prior_bpd"], atol=1e-8)


def test_strided_timesteps():
    bits = np.unpackbits(THEIRS["strided"], 1, 1000)
    for count, row in zip(THEIRS["counts"].tolist(), bits, strict=True):
        theirs = np.flatnonzero(row)[::-1]
        if count == 1:  # theirs has nothing left to remove; ours draws in one step
            assert theirs.tolist() == [0] and respace(1000, 1).tolist() == [999]
            continue
        np.testing.assert_array_equal(respace(1000, count), theirs)
        np.testing.assert_array_equal(respace(1000, str(count)), theirs)


def test_strides_by_name():
    strides = THEIRS["ddim_strides"].tolist()
    for count in range(2, 1001):
        if strides[count]:
            theirs = np.arange(0, 1000, strides[count])[::-1]
            np.testing.assert_array_equal(respace(1000, f"ddim{count}"), theirs)
        else:
            with pytest.raises(ValueError, match="no whole stride"):
                respace(1000, f"ddim{count}")


@pytest.mark.parametrize("key", [key for key in THEIRS if key.startswith("sections/")])
def test_sections(key):
    spec = key.removeprefix("sections/")
    np.testing.assert_array_equal(respace(1000, spec), THEIRS[key][::-1])


SAMPLERS = {
    "ddim_0": ("ddim", {"eta": 0.0}),
    "ddim_1": ("ddim", {"eta": 1.0}),
    "fixed_small": ("ddpm", {"variance": "fixed_small"}),
    "learned_range": ("ddpm", {"variance": "learned_range"}),
    "reverse": ("ddim_inversion", {"to_x0": False}),
}


@pytest.mark.parametrize("loop", [key for key in THEIRS if key.startswith("loop/")])
def test_loops(loop):
    _, name, spec, key = loop.split("/")
    sampler, options = SAMPLERS[key]
    x, clip, schedule = jnp.asarray(THEIRS["x_T"]), 1.0, make_schedule(name)
    if key == "reverse":
        x, clip = X_0[:4], None
    else:
        options = options | {"noise": lambda i, shape: jnp.asarray(THEIRS["draws"])[i]}
    predict = predictor(schedule, clip, learned=key == "learned_range")
    run = functools.partial(getattr(samplers, sampler), predict, schedule, **options)
    steps = respace(1000, spec)
    close(jax.jit(lambda x: run(x, timesteps=steps))(x), loop, 5e-5)
