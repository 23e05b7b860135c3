"""Samplers on a correlated Gaussian, whose score is known in closed form."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion import gaussian
from unclip_jax.diffusion import process, samplers, schedule
from unclip_jax.diffusion.schedule import make_schedule, respace, strided_timesteps

SCHEDULE = make_schedule("cosine")
PREDICT = gaussian.predictor(SCHEDULE)
STOCHASTIC = {"ddpm": {}, "ddim": {"eta": 1.0}, "dpmpp_2m_sde": {}, "consistency": {}}
DETERMINISTIC = {"ddim": {}, "dpmpp_2m": {}, "heun": {}}
CASES = [
    *((name, options) for name, options in STOCHASTIC.items()),
    *((name, options) for name, options in DETERMINISTIC.items()),
]


def keys_of(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


@functools.cache
def program(name, steps, *options):
    """(x_T, keys) -> x_0, compiled."""
    run = functools.partial(samplers.SAMPLERS[name], **dict(options))
    steps = samplers.timesteps(name, SCHEDULE, steps)
    return jax.jit(lambda x, keys: run(PREDICT, SCHEDULE, x, steps, keys))


def draw(name, steps, keys, **options):
    x_T = samplers.normal(keys, (2,))
    return np.asarray(program(name, steps, *options.items())(x_T, keys))


# "consistency" does, not with a denoiser: see test_consistency.py
@pytest.mark.parametrize("name,options", [c for c in CASES if c[0] != "consistency"])
def test_samplers_reach_the_mean_and_the_covariance(name, options):
    x = draw(name, 100, keys_of(4096), **options)
    error = np.sqrt(np.diag(gaussian.COVARIANCE) / 4096)  # of the mean
    np.testing.assert_allclose(x.mean(0), gaussian.MEAN, atol=4 * error.max())
    # 2 % of sampling error, and what 100 steps lack
    np.testing.assert_allclose(np.cov(x.T), gaussian.COVARIANCE, atol=0.02)


@pytest.mark.parametrize("name", ["ddpm", *DETERMINISTIC, "dpmpp_2m_sde"])
def test_they_start_where_no_signal_is_left(name):
    """At abar = 0, where epsilon says nothing of x_0; the Gaussian's x_0 does."""
    schedule = make_schedule("zero_snr:linear")
    predict = gaussian.predictor(schedule)
    steps = np.append(999, samplers.timesteps(name, schedule, 250))
    steps = np.unique(steps)[::-1]
    x_T = samplers.normal(keys_of(4096), (2,))
    run = functools.partial(samplers.SAMPLERS[name], predict, schedule)
    x = np.asarray(jax.jit(lambda x: run(x, steps, keys_of(4096, 1)))(x_T))
    error = np.sqrt(np.diag(gaussian.COVARIANCE) / 4096)
    np.testing.assert_allclose(x.mean(0), gaussian.MEAN, atol=4 * error.max())
    np.testing.assert_allclose(np.cov(x.T), gaussian.COVARIANCE, atol=0.02)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_ddpm_brackets_the_spread_between_its_two_variances(variance):
    """In 10 steps the small variance is too small and the large one too large."""
    x = draw("ddpm", 10, keys_of(4096), variance=variance)
    excess = np.linalg.eigvalsh(np.cov(x.T) - gaussian.COVARIANCE)
    assert (excess < 0).all() if variance == "fixed_small" else (excess > 0).all()


@pytest.mark.parametrize("name,options", CASES)
def test_a_sample_depends_on_its_key_only(name, options):
    keys = keys_of(8)
    many = draw(name, 5, keys, **options)
    alone = draw(name, 5, keys[2:3], **options)
    np.testing.assert_allclose(alone[0], many[2], atol=1e-6)
    if options == STOCHASTIC.get(name):
        other = program(name, 5, *options.items())(
            samplers.normal(keys, (2,)), keys_of(8, seed=1)
        )
        assert (np.abs(other - many) > 1e-3).all(1).any()


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_solvers_of_the_ode_use_no_noise(name):
    x_T = samplers.normal(keys_of(4), (2,))
    a, b = (program(name, 5)(x_T, keys_of(4, seed)) for seed in (0, 1))
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("run", samplers.SAMPLERS.values())
def test_images_are_sampled_as_their_pixels(run):
    """(B, H, W, C) as (B H W, C), with given noise."""
    shape, steps = (3, 2, 5, 2), strided_timesteps(1000, 3)
    noise = np.random.default_rng(0).standard_normal((4, 30, 2)).astype(np.float32)

    def predict(x, t):
        pred = PREDICT(x.reshape(-1, 2), jnp.repeat(t, 10))
        return process.Prediction(*(a.reshape(x.shape) for a in pred[:2]), None)

    def given(i, shape):
        return jnp.asarray(noise)[i].reshape(shape)

    x_T = jnp.asarray(noise[3])
    image = jax.jit(lambda x: run(predict, SCHEDULE, x, steps, given))
    pixels = jax.jit(lambda x: run(PREDICT, SCHEDULE, x, steps, given))
    a, b = image(x_T.reshape(shape)), pixels(x_T)
    np.testing.assert_allclose(a.reshape(-1, 2), b, atol=1e-5)


ORDERS = {"ddim": 1, "dpmpp_2m": 2, "heun": 2}


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("name", ORDERS)
def test_the_error_falls_at_the_solvers_order(name, schedule):
    schedule = make_schedule(schedule)
    predict = gaussian.predictor(schedule)
    x_T = jnp.asarray(np.random.default_rng(0).standard_normal((64, 2)), jnp.float32)
    errors = []
    for n in (20, 80):
        steps = samplers.timesteps(name, schedule, n)
        run = functools.partial(samplers.SAMPLERS[name], predict, schedule)
        x = jax.jit(lambda x: run(x, steps, keys_of(64)))(x_T)  # noqa: B023
        exact = gaussian.flow(schedule, x_T, steps[0])
        errors.append(np.abs(x - exact).max())
    slope = np.log2(errors[0] / errors[-1]) / 2
    assert -0.2 < slope - ORDERS[name] < 0.5, (slope, errors)


@pytest.mark.parametrize("calls", [5, 9, 15, 25])
def test_solvers_gain_by_leaving_the_far_end_of_the_schedule_out(monkeypatch, calls):
    """Nearer to the exact flow than from T - 1 on, and DPM-Solver++ than DDIM."""
    x_T = jnp.asarray(np.random.default_rng(0).standard_normal((256, 2)), jnp.float32)
    exact = gaussian.flow(SCHEDULE, x_T, 999)

    def error(name):
        n = (calls + 1) // 2 if name == "heun" else calls
        steps = samplers.timesteps(name, SCHEDULE, n)
        run = functools.partial(samplers.SAMPLERS[name], PREDICT, SCHEDULE)
        x = jax.jit(lambda x: run(x, steps, keys_of(256)))(x_T)
        return np.sqrt(np.mean(np.square(x - exact)))

    bounded = {name: error(name) for name in ORDERS}
    monkeypatch.setattr(schedule, "LEAST_HALF_LOG_SNR", -np.inf)
    whole = {name: error(name) for name in ORDERS}
    assert bounded["dpmpp_2m"] < 0.75 * whole["dpmpp_2m"], (bounded, whole)
    assert bounded["heun"] < 0.95 * whole["heun"], (bounded, whole)
    assert bounded["dpmpp_2m"] < bounded["ddim"] / 2


def test_heun_is_exact_while_x0_is_constant():
    """Data of one point: x0 is the same everywhere, and every step is DDIM's."""
    point = jnp.asarray([[0.3, -0.7]])

    def predict(x, t):
        return process.interpret(SCHEDULE, "x0", x, t, point + 0 * x, None)

    x = samplers.heun(
        predict, SCHEDULE, jnp.ones((1, 2)), strided_timesteps(1000, 4)[:-1]
    )
    np.testing.assert_allclose(x, point, atol=1e-5)


def test_inversion_comes_back():
    """x_T is where the exact flow comes from, and DDIM returns: to first order."""
    x_0 = jnp.asarray(gaussian.data(256))
    away, back = [], []
    for n in (50, 200):
        steps = strided_timesteps(1000, n)
        x_T = samplers.ddim_inversion(PREDICT, SCHEDULE, x_0, steps)
        again = samplers.ddim(PREDICT, SCHEDULE, x_T, steps, keys_of(256))
        away.append(np.abs(gaussian.flow(SCHEDULE, x_T, 999) - x_0).max())
        back.append(np.abs(again - x_0).max())
    assert back[1] < 0.05 and away[1] < 0.05, (back, away)
    assert 3 < back[0] / back[1] < 5 and 3 < away[0] / away[1] < 5, (back, away)


def test_inversion_returns_what_the_model_would_not_draw():
    """Ending at the last timestep keeps what the flow carried, not the model's x_0."""

    def flat(x, t):  # a model that knows no detail: its x_0 is constant in a sample
        x0 = jnp.broadcast_to(x.mean(1, keepdims=True), x.shape)
        return process.interpret(SCHEDULE, "x0", x, t, x0, None)

    x_0, errors = jnp.asarray(gaussian.data(64)), []
    for to_x0 in (True, False):
        steps = strided_timesteps(1000, 250)
        x_T = samplers.ddim_inversion(flat, SCHEDULE, x_0, steps, to_x0=to_x0)
        again = samplers.ddim(flat, SCHEDULE, x_T, steps, keys_of(64), to_x0=to_x0)
        errors.append(np.abs(again - x_0).max())
    detail = np.abs(x_0 - x_0.mean(1, keepdims=True)).max()
    assert errors[0] > 0.9 * detail and errors[1] < 0.05 * detail, (errors, detail)


@functools.cache
def round_trip(n, min_signal):
    """(x_0, error) -> the x_0 that ddim draws from where ddim_inversion arrives.

    `error` is that of the model's epsilon, relative.
    """
    steps = samplers.timesteps("ddim", SCHEDULE, n, min_signal)

    def run(x_0, error):
        def predict(x, t):
            epsilon = PREDICT(x, t).epsilon * (1 + error)
            return process.interpret(SCHEDULE, "epsilon", x, t, epsilon, None)

        along = {"timesteps": steps, "to_x0": False}
        x_T = samplers.ddim_inversion(predict, SCHEDULE, x_0, **along)
        return samplers.ddim(predict, SCHEDULE, x_T, noise=keys_of(len(x_0)), **along)

    return jax.jit(run)


@pytest.mark.parametrize("n,least", [(50, 28), (250, 35)])
def test_inversion_bears_an_error_of_epsilon(n, least):
    """PSNR in dB for data in [-1, 1]. Where the signal is weak, x0 is all error."""
    x_0 = jnp.asarray(gaussian.data(256))

    def psnr(error, min_signal):
        again = round_trip(n, min_signal)(x_0, error)
        return 10 * np.log10(4 / np.mean(np.square(again - x_0)))

    exact = psnr(0.0, 0.03)
    assert psnr(0.001, 0.03) > exact - 0.5
    assert psnr(0.01, 0.03) > exact - 3
    assert exact > psnr(0.03, 0.03) > least
    assert psnr(0.0, 0.0) > exact - 0.5 and psnr(0.01, 0.0) < 20


def test_a_minimum_of_signal_leaves_timesteps_out():
    signal = np.sqrt(SCHEDULE.alphas_cumprod)
    first = np.flatnonzero(signal >= 0.03)[-1]
    for name in samplers.SAMPLERS:
        steps = samplers.timesteps(name, SCHEDULE, 50, min_signal=0.03)
        last = 18 if name == "consistency" else 0  # ends of 50 equal parts
        assert len(steps) == 50 and steps[0] == first and steps[-1] == last
    every = samplers.timesteps("ddim", SCHEDULE, 1000, min_signal=0.03)
    np.testing.assert_array_equal(every, np.arange(first, -1, -1))
    named = samplers.timesteps("ddim", SCHEDULE, "ddim50", min_signal=0.03)
    np.testing.assert_array_equal(named, np.arange(0, first, 20)[::-1])
    with pytest.raises(ValueError, match="from 1 to 1000, got 1001"):
        samplers.timesteps("ddim", SCHEDULE, 1001, min_signal=0.03)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_named_timesteps_are_every_samplers(name):
    steps = samplers.timesteps(name, SCHEDULE, "10,10,3,2,2")
    np.testing.assert_array_equal(steps, respace(1000, "10,10,3,2,2"))
    again = samplers.timesteps(name, SCHEDULE, "25")
    np.testing.assert_array_equal(again, samplers.timesteps(name, SCHEDULE, 25))


def test_corrections_make_the_inversion_exact():
    x_0, steps = jnp.asarray(gaussian.data(256)), strided_timesteps(1000, 25)[1:]
    errors = []
    for corrections in (0, 1, 4):
        x_T = samplers.ddim_inversion(PREDICT, SCHEDULE, x_0, steps, corrections)
        again = samplers.ddim(PREDICT, SCHEDULE, x_T, steps, keys_of(256))
        errors.append(np.abs(again - x_0).max())
    assert errors[0] > 0.1 and errors[1] < 0.05 and errors[2] < 1e-3, errors


@pytest.mark.parametrize(
    "timesteps", [[0, 5], [5, 5, 0], [1000, 0], [5, -1], [], [1.5, 0.5], [[1]]]
)
def test_impossible_timesteps_are_refused(timesteps, unchecked_types):
    with pytest.raises(ValueError, match="expected integers that descend"):
        samplers.ddim(PREDICT, SCHEDULE, jnp.ones((1, 2)), timesteps, keys_of(1))


@pytest.mark.parametrize(
    "options,message",
    [
        ({"variance": "small"}, "'small': expected one of"),
        ({"variance": "analytic"}, "need one another"),
        ({"statistic": np.ones(1000)}, "need one another"),
        ({"variance": "learned_range"}, "the model has none"),
        ({"variance": "analytic", "statistic": np.ones(10)}, "each of the 1000"),
    ],
)
def test_impossible_variances_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        samplers.ddpm(
            PREDICT, SCHEDULE, jnp.ones((1, 2)), [5, 0], keys_of(1), **options
        )


def test_ddim_on_a_flow_is_eulers_method():
    """Steps of x along the velocity, in the coordinates (1 - u) x_0 + u epsilon."""
    schedule = make_schedule("flow")
    weights = jnp.asarray(np.random.default_rng(5).standard_normal((4, 4)), jnp.float32)

    def velocity(x, u):  # of a model that sees x in those coordinates
        return jnp.tanh(x @ weights) + u

    def predict(x, t):
        u = (t[:, None] + 0.5) / 1000
        straight = x * jnp.hypot(u, 1 - u)
        output = velocity(straight, u)
        return process.interpret(schedule, "flow", x, t, output, None)

    x = x_T = jax.random.normal(jax.random.key(0), (2, 4))
    timesteps = np.array([999, 700, 400, 100])
    u = np.append((timesteps + 0.5) / 1000, 0.0)
    x = x * np.hypot(u[0], 1 - u[0])
    for a, b in zip(u[:-1], u[1:], strict=True):
        x = x + (b - a) * velocity(x, np.float32(a))
    keys = jax.random.split(jax.random.key(1), 2)  # eta = 0 adds no noise
    drawn = samplers.ddim(predict, schedule, x_T, timesteps, keys)
    np.testing.assert_allclose(drawn, x, atol=1e-4)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_loop_in_pieces_is_the_loop(name):
    """Bit for bit; one program makes all pieces, whatever their lengths."""
    keys, steps = keys_of(3), samplers.timesteps(name, SCHEDULE, 7)
    x_T = samplers.normal(keys, (2,))
    sampler = functools.partial(samplers.SAMPLERS[name], PREDICT, SCHEDULE)

    @jax.jit
    def make(state, first, end):
        def run(step, start, rows):
            return samplers.run_piece(step, state, rows, first, end, 7)

        return sampler(x_T, steps, keys, run=run)

    state = sampler(x_T, steps, keys, run=lambda step, start, rows: start)
    for first, end in ((0, 1), (1, 4), (4, 6), (6, 7)):
        state = make(state, first, end)
    assert make._cache_size() == 1
    whole = jax.jit(lambda: sampler(x_T, steps, keys))()
    np.testing.assert_array_equal(jax.tree.leaves(state)[0], whole)
