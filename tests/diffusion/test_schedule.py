import numpy as np
import pytest

from unclip_jax.diffusion.schedule import (
    head,
    log_snr_timesteps,
    make_schedule,
    respace,
    strided_timesteps,
)

# alphas_cumprod at 0, 250, 500, 750, 999 of the squared-cosine schedule with
# betas capped at 0.999, as diffusers' UnCLIPScheduler has them
COSINE = (0.9999587, 0.845888, 0.492285, 0.143179, 2.4287e-9)
# round(arange(n) * 999 / (n - 1)) reversed, as the public checkpoints step
STEPS_25 = (
    "999 957 916 874 832 791 749 708 666 624 583 541 500 458 416 375 333 291 250 "
    "208 166 125 83 42 0"
)


def test_cosine_is_the_public_checkpoints_schedule():
    bar = make_schedule("cosine").alphas_cumprod
    np.testing.assert_allclose(bar[[0, 250, 500, 750, 999]], COSINE, rtol=4e-5)


def test_linear_is_ddpms():
    betas = make_schedule("linear").betas
    np.testing.assert_allclose(betas[[0, -1]], [1e-4, 0.02])
    np.testing.assert_allclose(np.diff(betas, 2), 0, atol=1e-15)


def test_flow_has_the_signal_to_noise_ratios_of_a_straight_path():
    bar = make_schedule("flow", 500).alphas_cumprod
    u = np.linspace(0.001, 0.999, 500)
    np.testing.assert_allclose(np.sqrt(bar / (1 - bar)), (1 - u) / u, rtol=1e-9)


@pytest.mark.parametrize("shift", [0.5, 3.0])
def test_a_shift_moves_the_times_of_a_flow_as_stable_diffusion_3_does(shift):
    bar = make_schedule("flow", shift=shift).alphas_cumprod
    u = (np.arange(1000) + 0.5) / 1000
    u = shift * u / (1 + (shift - 1) * u)  # Esser et al. 2024, equation 23
    np.testing.assert_allclose(np.sqrt(bar / (1 - bar)), (1 - u) / u, rtol=1e-6)


@pytest.mark.parametrize("name", ["scaled_linear", "cosine"])
def test_zero_terminal_snr_is_that_of_diffusers(name):
    torch = pytest.importorskip("torch")
    ddim = pytest.importorskip("diffusers.schedulers.scheduling_ddim")
    plain = make_schedule(name).betas
    betas = ddim.rescale_zero_terminal_snr(torch.from_numpy(plain)).numpy()
    schedule = make_schedule(f"zero_snr:{name}")
    np.testing.assert_allclose(schedule.betas, betas, rtol=1e-6)
    assert schedule.alphas_cumprod[-1] == 0
    shifted = make_schedule(f"zero_snr:{name}", shift=2.0).alphas_cumprod
    assert shifted[-1] == 0 and (np.diff(shifted) < 0).all()


def test_impossible_shifts_are_refused():
    for shift in (0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="shift must be a positive number"):
            make_schedule("cosine", shift=shift)


@pytest.mark.parametrize("name", ["cosine", "linear", "scaled_linear", "flow"])
@pytest.mark.parametrize("steps", [10, 1000])
def test_every_schedule_destroys_the_signal_monotonically(name, steps):
    bar = make_schedule(name, steps).alphas_cumprod
    assert (np.diff(bar) < 0).all() and 0 < bar[-1] < bar[0] < 1


@pytest.mark.parametrize("n", [2, 7, 25, 50, 64, 250, 1000])
def test_strided_timesteps_span_the_process(n):
    steps = strided_timesteps(1000, n)
    assert len(steps) == n and steps[0] == 999 and steps[-1] == 0
    assert (np.diff(steps) < 0).all()


def test_strided_timesteps_equal_the_published_ones():
    assert strided_timesteps(1000, 25).tolist() == list(map(int, STEPS_25.split()))
    assert strided_timesteps(1000, 7).tolist() == [999, 832, 666, 500, 333, 166, 0]


@pytest.mark.parametrize(
    "spec,steps",
    [
        (1, [999]),
        ("1", [999]),
        ("7", [999, 832, 666, 500, 333, 166, 0]),
        ("ddim4", [750, 500, 250, 0]),
        ("ddim3", [668, 334, 0]),  # the smallest stride of the three
        ("leading4", [750, 500, 250, 0]),
        ("leading3+1", [667, 334, 1]),
        ("3,1,2", [999, 667, 334, 333, 166, 0]),
        ("2,0", [499, 0]),
        ("fast27", [997, 800, 799, 600, 599, 500, 400, 399]),
    ],
)
def test_respacings_are_those_of_their_names(spec, steps):
    assert respace(1000, spec).tolist()[: len(steps)] == steps


@pytest.mark.parametrize(
    "spec",
    [
        "ddim999",
        "ddim",
        "ddim0",
        "-5",
        "",
        "4,",
        "0,0",
        "600,5",
        "2.5",
        "plms",
        "leading",
    ],
)
def test_impossible_respacings_are_refused(spec):
    with pytest.raises(ValueError, match=f"sampling steps {spec!r}: "):
        respace(1000, spec)


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_head_ends_where_the_signal_does(name):
    schedule = make_schedule(name)
    signal = np.sqrt(schedule.alphas_cumprod)
    kept = head(schedule, 0.03)
    assert signal[kept.num_steps - 1] >= 0.03 > signal[kept.num_steps :].max(initial=0)
    np.testing.assert_array_equal(kept.betas, schedule.betas[: kept.num_steps])
    assert head(schedule, 0).num_steps == 1000
    with pytest.raises(ValueError, match="signal of 1.5"):
        head(schedule, 1.5)


@pytest.mark.parametrize("name", ["cosine", "linear", "scaled_linear"])
@pytest.mark.parametrize("n", [1, 2, 10, 64, 996, 999, 1000])
def test_log_snr_timesteps_span_the_process(name, n):
    """From 995 on the cosine schedule, the last at -5.1 or above, if that is enough."""
    steps = log_snr_timesteps(make_schedule(name), n)
    first = max(995, n - 1) if name == "cosine" else 999
    assert len(steps) == n and steps[0] == first and (n == 1 or steps[-1] == 0)
    assert (np.diff(steps) < 0).all()


@pytest.mark.parametrize("n", [5, 9, 25])
def test_log_snr_timesteps_start_above_the_least(n):
    bar = make_schedule("cosine").alphas_cumprod
    half_log_snr = 0.5 * np.log(bar / (1 - bar))
    first = log_snr_timesteps(make_schedule("cosine"), n)[0]
    assert half_log_snr[first] >= -5.1 > half_log_snr[first + 1]


def test_log_snr_timesteps_are_even_where_the_schedule_is_fine():
    schedule = make_schedule("linear")
    bar = schedule.alphas_cumprod[log_snr_timesteps(schedule, 12)]
    gaps = np.diff(np.log(bar / (1 - bar)))
    np.testing.assert_allclose(gaps[:-2], gaps[:-2].mean(), rtol=0.05)


@pytest.mark.parametrize("n", [0, -1, 1001])
def test_impossible_step_counts_are_refused(n):
    with pytest.raises(ValueError, match="from 1 to 1000, got"):
        strided_timesteps(1000, n)
    with pytest.raises(ValueError, match="from 1 to 1000, got"):
        log_snr_timesteps(make_schedule("cosine"), n)


def test_few_log_snr_timesteps():
    """Half log-SNR -5.1, -2.5, 0, 2.5, 5.0 on cosine; on linear from the very end."""
    steps = log_snr_timesteps(make_schedule("cosine"), 5).tolist()
    assert steps == [995, 949, 500, 43, 0]
    steps = log_snr_timesteps(make_schedule("linear"), 5).tolist()
    assert steps == [999, 722, 302, 30, 0]


def test_unknown_schedules_are_refused():
    with pytest.raises(ValueError, match="'cosin'"):
        make_schedule("cosin")
