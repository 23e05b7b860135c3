"""Ancestral sampling (Ho et al. 2020), with every usual choice of the variance."""

import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import analytic, process
from unclip_jax.diffusion.samplers.steps import (
    everywhere,
    make_steps,
    noise_source,
    run_all,
)
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.errors import UsageError
from unclip_jax.shapes import Path, Samples

VARIANCES = ("fixed_small", "fixed_large", "learned_range", "analytic")


def ddpm(
    predict,
    schedule: Schedule,
    x_T: Samples,
    timesteps: Path,
    noise,
    variance: str | None = None,
    statistic: np.ndarray | None = None,
    bound: float | None = None,
    pixels: float | None = None,
    run=run_all,
):
    """DDPM over strided steps.

    Arguments as in `samplers`, and:

    Args:
      variance: "fixed_small", the posterior's given x_0 (IDDPM's beta tilde);
        "fixed_large", beta of the step; "learned_range", the model's (IDDPM,
        equation 15); "analytic", see `analytic.reverse_variance`. None is
        "learned_range" for a model that has one, else "fixed_small".
      statistic, bound, pixels: of `analytic.reverse_variance`.

    Raises:
      UsageError: an unknown variance, or one without what it needs.
    """
    if variance not in (None, *VARIANCES):
        raise UsageError(f"variance {variance!r}: expected one of {VARIANCES}")
    if (variance == "analytic") != (statistic is not None):
        raise UsageError('variance="analytic" and statistic=table need one another')
    steps, draw = make_steps(schedule, timesteps), noise_source(noise)
    known = np.zeros(len(steps.t))
    if statistic is not None:
        known = analytic.reverse_variance(
            schedule, timesteps, statistic, bound=bound, pixels=pixels
        )

    def step(x, i, row):
        (t, s), known = row
        t, s = everywhere(t, x), everywhere(s, x)
        pred = predict(x, t)
        if variance == "learned_range" and pred.variance is None:
            raise UsageError('variance="learned_range": the model has none')
        post = process.posterior(schedule, pred.x0, x, t, s)
        if variance == "analytic":
            sigma = jnp.sqrt(known)
        elif variance == "fixed_large":
            sigma = jnp.exp(0.5 * post.log_beta)
        elif variance == "fixed_small" or pred.variance is None:
            sigma = jnp.exp(0.5 * post.log_variance)
        else:
            logvar = process.learned_log_variance(post, pred.variance)
            sigma = jnp.exp(0.5 * logvar)
        last = row[0][1] < 0  # x_0 is the mean
        return post.mean + jnp.where(last, 0, sigma) * draw(i, x.shape)

    return run(step, x_T, ((steps.t, steps.s), known))
