"""Consistency training: a model whose x0 is where the probability-flow ODE ends.

Song & Dhariwal 2023 ("Improved techniques for training consistency models"): what it
says of x_t is trained towards what it says of x_s, s < t, with the same noise, and of
x_0 itself at the end. No teacher is needed; from a trained denoiser it is Geng et al.
2024's. The finer the steps, the nearer to the ODE.
"""

import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion.schedule import Schedule, gather
from unclip_jax.shapes import PerSample, Samples, Table, Timesteps

HUBER = 0.00054  # of Song & Dhariwal's section 3.3, per root of a dimension


def step_length(num_train_steps: int, count: int) -> int:
    """t - s in timesteps: T in `count` equal parts. An s below 0 stands for x_0."""
    return max(round(num_train_steps / count), 1)


def step_weight(schedule: Schedule, count: int) -> Table:
    """(T,) float64: 1 / (u_t - u_s) of the steps, of mean 1.

    u = sigma / (signal + sigma) is the time of the straight path: near the ODE the
    error of a step is as large as the step, and they should weigh alike.
    """
    bar = schedule.alphas_cumprod
    signal, sigma = np.sqrt(bar), np.sqrt(1 - bar)
    u = np.append(sigma / (signal + sigma), 0.0)  # index -1: x_0
    t = np.arange(schedule.num_steps)
    s = np.maximum(t - step_length(schedule.num_steps, count), -1)
    weight = 1 / (u[t] - u[s])
    return weight / weight.mean()


def consistency_losses(
    schedule: Schedule,
    count: int,
    t: Timesteps,
    x0: Samples,
    earlier_x0: Samples,
    huber: float = HUBER,
) -> PerSample:
    """(B,) pseudo-Huber distances, weighed by `step_weight`.

    Args:
      schedule, count, t: the process, the number of steps, and the timesteps (B,).
      x0: (B, ..., C) what the model says of x_t.
      earlier_x0: of x_s, without a gradient; x_0 itself where s is -1.
      huber: the root mean square error from which on they are linear.
    """
    error = jnp.square(x0 - earlier_x0).mean(tuple(range(1, x0.ndim)))
    distance = jnp.sqrt(error + huber**2) - huber
    return distance * gather(step_weight(schedule, count), t, 1)
