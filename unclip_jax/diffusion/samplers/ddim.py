"""DDIM (Song, Meng & Ermon 2021), and its inversion."""

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion.samplers.steps import (
    Steps,
    everywhere,
    make_steps,
    noise_source,
    run_all,
)
from unclip_jax.diffusion.schedule import Schedule
from unclip_jax.shapes import Path, Samples


def ddim(
    predict,
    schedule: Schedule,
    x_T: Samples,
    timesteps: Path,
    noise,
    eta=0.0,
    to_x0: bool = True,
    run=run_all,
):
    """DDIM (equation 12); arguments as in `samplers`.

    eta scales the noise: 0 is deterministic, 1 has DDPM's small variance. It may be
    traced. Unless `to_x0`, it ends at timesteps[-1], where a trace of noise is left
    (diffusers' set_alpha_to_one=False): the step to x_0 puts the model's x_0 in place
    of x, which no inversion can undo.
    """
    steps = make_steps(schedule, timesteps, to_x0)
    draw = noise_source(noise)
    alpha = (steps.signal_t / steps.signal_s) ** 2
    spread = steps.sigma_s / steps.sigma_t * np.sqrt(1 - alpha)

    def step(x, i, row):
        steps, spread = row
        pred = predict(x, everywhere(steps.t, x))
        sigma = eta * spread
        rest = jnp.sqrt(jnp.maximum(steps.sigma_s**2 - sigma**2, 0))
        mean = steps.signal_s * pred.x0 + rest * pred.epsilon
        return mean + sigma * draw(i, x.shape)

    return run(step, x_T, (steps, spread))


def ddim_inversion(
    predict,
    schedule: Schedule,
    x_0: Samples,
    timesteps: Path,
    corrections: int = 0,
    to_x0: bool = True,
    run=run_all,
):
    """The x_T from which `ddim` with eta = 0 and the same timesteps returns to x_0.

    Takes ddim's steps backwards. ddim's own step used the epsilon of the noisier end,
    which is not known yet: the step is made with that of the less noisy end (of x_0,
    which no model was trained on, as if it were at timesteps[-1]), which is exact in
    the limit of many steps, then made again `corrections` times with the epsilon of
    where it arrived (a fixed point of which is the exact inverse of ddim's step).
    `predict` must not clip x0: epsilon would no longer be the model's. An error of
    epsilon becomes one of x0 1 / signal times as large, 2e4 times at the end of the
    cosine schedule: leave out timesteps of little signal, there and back
    (`samplers.timesteps` with min_signal, of about 0.03).

    Args:
      predict, schedule, timesteps, run: as for `ddim` (timesteps descend here too).
      x_0: (B, ..., C) float32.
      corrections: more calls of the model per step, in search of a fixed point.
      to_x0: as for `ddim`; if not, x_0 is taken for what is at timesteps[-1].

    Returns:
      (B, ..., C) float32 at timesteps[0].
    """
    steps = make_steps(schedule, timesteps, to_x0)

    def step(x, i, steps):
        start = jnp.where(steps.s < 0, steps.t, steps.s)

        def arrive(k, y):
            t = jnp.where(k == 0, start, steps.t)
            epsilon = predict(y, everywhere(t, y)).epsilon
            x0 = (x - steps.sigma_s * epsilon) / steps.signal_s
            return steps.signal_t * x0 + steps.sigma_t * epsilon

        return jax.lax.fori_loop(0, corrections + 1, arrive, x)

    backwards = Steps(*(table[::-1] for table in steps))
    return run(step, x_0, backwards)
