"""Samplers against the schedulers of diffusers, with the same model and noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from unclip_jax.diffusion import process, samplers
from unclip_jax.diffusion.schedule import (
    make_schedule,
    respace,
    strided_timesteps,
)

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")

B, C = 5, 8
NAMES = {"cosine": "squaredcos_cap_v2", "linear": "linear"}
RNG = np.random.default_rng(0)
X_T = RNG.standard_normal((B, C)).astype(np.float32)
NOISE = RNG.standard_normal((1000, B, C)).astype(np.float32)  # by number of the step
OUTPUT = RNG.standard_normal((1000, B, 2 * C)).astype(np.float32)  # by timestep


def model(x, t, learned, lib):
    """A nonlinear model of (x, t), with the learned variance's channels if asked."""
    mean = 0.3 * OUTPUT_OF[lib](t)[..., :C] + 0.5 * lib.tanh(x)
    raw = lib.tanh(OUTPUT_OF[lib](t)[..., C:])
    return lib.concatenate([mean, raw], -1) if learned else mean


OUTPUT_OF = {
    jnp: lambda t: jnp.asarray(OUTPUT)[t[0]],
    torch: lambda t: torch.from_numpy(OUTPUT)[int(t)],
}


def ours(name, schedule, prediction, steps, clip, learned=False, x=X_T, **options):
    schedule = make_schedule(schedule)

    def predict(x, t):
        output = model(x, t, learned, jnp)
        return process.interpret(schedule, prediction, x, t, output, clip)

    def noise(i, shape):
        assert shape == (B, C)
        return jnp.asarray(NOISE)[i]

    if name != "ddim_inversion":
        options["noise"] = noise
    sampler = getattr(samplers, name)
    run = jax.jit(lambda x: sampler(predict, schedule, x, steps, **options))
    return np.asarray(run(x))


def theirs(scheduler, steps, learned=False, x=X_T, **options):
    """options: of scheduler.step, functions of the step's number."""
    x = torch.from_numpy(x)
    for i, t in enumerate(steps):
        kwargs = {name: value(i) for name, value in options.items()}
        x = scheduler.step(model(x, t, learned, torch), int(t), x, **kwargs)[0]
    return x.numpy()


def in_float64(scheduler, schedule):
    """The scheduler with its tables in float64.

    Theirs are float32, where 1 - abar_0 = 4e-5 has lost three digits: UnCLIPScheduler's
    last step multiplies its x0 by 1.0005.
    """
    betas = make_schedule(schedule).betas
    np.testing.assert_allclose(scheduler.betas.numpy(), betas, rtol=1e-6, atol=1e-7)
    scheduler.betas = torch.from_numpy(betas)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = torch.cumprod(scheduler.alphas, 0)
    return scheduler


def inject(monkeypatch, module):
    """Makes a scheduler's own draws those of NOISE, from the first on."""
    draws = iter(NOISE)
    path = f"diffusers.schedulers.{module}.randn_tensor"
    monkeypatch.setattr(path, lambda *_, **__: torch.from_numpy(next(draws)))


def close(a, b, atol=1e-5):
    np.testing.assert_allclose(a, b, atol=atol * max(1, np.abs(b).max()), rtol=0)


@pytest.mark.parametrize("n", [2, 7, 25, 50, 64, 250])
def test_timesteps_are_those_of_unclip(n):
    scheduler = diffusers.UnCLIPScheduler()
    scheduler.set_timesteps(n)
    assert strided_timesteps(1000, n).tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("n,offset", [(7, 0), (50, 1), (1000, 0)])
def test_leading_timesteps_are_those_of_diffusers(n, offset):
    scheduler = diffusers.DDIMScheduler(timestep_spacing="leading", steps_offset=offset)
    scheduler.set_timesteps(n)
    assert respace(1000, f"leading{n}+{offset}").tolist() == [*scheduler.timesteps]


def test_schedules_with_betas_of_their_own_are_those_of_diffusers():
    for name in ("linear", "scaled_linear"):
        betas = diffusers.DDPMScheduler(
            beta_schedule=name, beta_start=0.00085, beta_end=0.012
        ).betas.numpy()
        named = make_schedule(f"{name}:0.00085:0.012").betas
        np.testing.assert_allclose(named, betas, rtol=1e-5)


@pytest.mark.parametrize(
    "kind,prediction,clip",
    [
        ("fixed_small_log", "sample", 5.0),  # Karlo's prior
        ("learned_range", "epsilon", 1.0),  # its decoder
        ("fixed_small_log", "epsilon", 1.0),  # its upsampler
    ],
)
@pytest.mark.parametrize("n", [7, 25])
def test_ddpm_is_unclip_scheduler(monkeypatch, kind, prediction, clip, n):
    learned = kind == "learned_range"
    scheduler = diffusers.UnCLIPScheduler(
        variance_type=kind, prediction_type=prediction, clip_sample_range=clip
    )
    scheduler.set_timesteps(n)
    steps = scheduler.timesteps.tolist()
    inject(monkeypatch, "scheduling_unclip")
    previous = [*steps[1:], None]
    as_shipped = theirs(scheduler, steps, learned, prev_timestep=previous.__getitem__)
    inject(monkeypatch, "scheduling_unclip")
    in_float64(scheduler, "cosine")
    b = theirs(scheduler, steps, learned, prev_timestep=previous.__getitem__)
    name = {"sample": "x0"}.get(prediction, prediction)
    a = ours("ddpm", "cosine", name, strided_timesteps(1000, n), clip, learned)
    close(a, b)
    close(a, as_shipped, 1e-3)


@pytest.mark.parametrize(
    "schedule,variance",
    [("linear", "fixed_small"), ("cosine", "fixed_large"), ("cosine", "learned_range")],
)
def test_ddpm_is_ddpm_scheduler(monkeypatch, schedule, variance):
    learned = variance == "learned_range"
    scheduler = diffusers.DDPMScheduler(
        beta_schedule=NAMES[schedule], variance_type=variance
    )
    in_float64(scheduler, schedule)
    scheduler.set_timesteps(10)
    steps = scheduler.timesteps.numpy()
    inject(monkeypatch, "scheduling_ddpm")
    b = theirs(scheduler, steps, learned)
    a = ours("ddpm", schedule, "epsilon", steps, 1.0, learned, variance=variance)
    close(a, b)


@pytest.mark.parametrize("prediction,eta", [("epsilon", 0.6), ("x0", 0), ("v", 1)])
def test_ddim_is_ddim_scheduler(prediction, eta):
    kind = {"x0": "sample", "v": "v_prediction"}.get(prediction, prediction)
    scheduler = diffusers.DDIMScheduler(prediction_type=kind, clip_sample=False)
    scheduler.set_timesteps(10)
    steps = scheduler.timesteps.numpy()
    noise = lambda i: torch.from_numpy(NOISE[i])  # noqa: E731
    b = theirs(scheduler, steps, eta=lambda i: eta, variance_noise=noise)
    close(ours("ddim", "linear", prediction, steps, None, eta=eta), b)


@pytest.mark.parametrize("most", [1e9, 2.0])
def test_dynamic_thresholding_is_diffusers(most):
    scheduler = diffusers.DDIMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.9, sample_max_value=most
    )
    x0 = NOISE[:6] * np.array([0.1, 0.5, 1, 2, 4, 8], np.float32)[:, None, None]
    b = scheduler._threshold_sample(torch.from_numpy(x0)).numpy()
    close(process.dynamic_threshold(0.9, most=most)(jnp.asarray(x0)), b)


def test_inversion_is_ddim_inverse_scheduler():
    scheduler = diffusers.DDIMInverseScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    steps = scheduler.timesteps.numpy()  # ascending; the model sees where it comes from
    x = torch.from_numpy(X_T)
    for s, t in zip([steps[0], *steps[:-1]], steps, strict=True):
        x = scheduler.step(model(x, s, False, torch), int(t), x)[0]
    close(ours("ddim_inversion", "linear", "epsilon", steps[::-1], None), x.numpy())


@pytest.mark.parametrize("schedule,n", [("linear", 8), ("cosine", 20)])
@pytest.mark.parametrize("name", ["dpmpp_2m", "dpmpp_2m_sde"])
def test_dpm_solver_is_diffusers(name, schedule, n):
    stochastic = name.endswith("sde")
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule=NAMES[schedule],
        algorithm_type="sde-dpmsolver++" if stochastic else "dpmsolver++",
        prediction_type="sample",
    )
    steps = strided_timesteps(1000, n)
    in_float64(scheduler, schedule)
    scheduler.set_timesteps(timesteps=steps.tolist())
    noise = {"variance_noise": lambda i: torch.from_numpy(NOISE[i])}
    b = theirs(scheduler, steps, **(noise if stochastic else {}))
    close(ours(name, schedule, "x0", steps, None), b)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [5, 9, 25])
def test_solvers_start_where_dpm_solver_does(name, n):
    """At the last timestep whose half log-SNR is not below -5.1."""
    scheduler = diffusers.DPMSolverMultistepScheduler(
        beta_schedule=NAMES[name], lambda_min_clipped=-5.1
    )
    scheduler.set_timesteps(n)
    ours = samplers.timesteps("dpmpp_2m", make_schedule(name), n)
    assert ours[0] == scheduler.timesteps[0] == {"cosine": 995, "linear": 999}[name]


def test_solvers_are_spaced_as_dpm_solver_spaces_them():
    """Evenly in the log SNR, rounded: theirs interpolates between timesteps."""
    scheduler = diffusers.DPMSolverMultistepScheduler(use_lu_lambdas=True)
    scheduler.set_timesteps(12)
    ours = samplers.timesteps("dpmpp_2m", make_schedule("linear"), 12)
    np.testing.assert_allclose(ours, scheduler.timesteps.numpy(), atol=1)


def test_heun_solves_the_ode_of_heun_discrete():
    """In another variable: equal in the limit of many steps, theirs 1000, ours 100."""
    schedule = make_schedule("linear")
    scheduler = diffusers.HeunDiscreteScheduler(
        trained_betas=schedule.betas, prediction_type="sample"
    )
    scheduler.set_timesteps(1000)

    def smooth(x, t, lib):
        return lib.tanh(x + t / 1000 * lib.cos(x))

    def predict(x, t):
        output = smooth(x, t[0].astype(float), jnp)
        return process.interpret(schedule, "x0", x, t, output, None)

    x = torch.from_numpy(X_T) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = smooth(scheduler.scale_model_input(x, t), float(t), torch)
        x = scheduler.step(output, t, x)[0]
    steps = samplers.timesteps("heun", schedule, 100)
    a = jax.jit(lambda x: samplers.heun(predict, schedule, x, steps))(X_T)
    np.testing.assert_allclose(a, x.numpy(), atol=3e-3)
