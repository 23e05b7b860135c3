"""Averages of parameters by power functions, and any other length afterwards (EDM2).

Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models",
section 3 and appendix C. A profile weighs the parameters of step tau <= t by tau^gamma:
it is as long as the run, and named by its relative standard deviation, `std`. From the
profiles kept at some steps of a run that of any other `std` is reconstructed, as the
linear combination that is nearest to it (algorithm 3).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.errors import UsageError

MOST_STD = 12**-0.5  # of gamma = 0, where all steps weigh the same


def exponent(std: float) -> float:
    """gamma of a relative standard deviation, a root of a cubic (equation 126).

    Raises UsageError for one outside (0, 0.2886].
    """
    if not 0 < std <= MOST_STD:
        raise UsageError(
            f"the standard deviation of an average of parameters is {std}: expected "
            f"more than 0 and at most {MOST_STD:.4f} (of the run's length)"
        )
    t = std**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def update(profiles: Mapping[str, Any] | None, params: Any, step: jax.Array) -> Any:
    """The profiles, by the digits of their `std`, one step later (equation 127).

    Args:
      profiles: {std: averages}, or None for a run without.
      params: of the step.
      step: () int32, the steps taken before; the first one's parameters are all there
        is of an average.
    """
    if profiles is None:
        return None
    fraction = 1 / (step.astype(jnp.float32) + 1)

    def averaged(std, average):
        beta = (1 - fraction) ** (exponent(float(std)) + 1)
        return jax.tree.map(lambda a, p: beta * a + (1 - beta) * p, average, params)

    return {std: averaged(std, average) for std, average in profiles.items()}


def inner_product(gamma, step, other_gamma, other_step) -> np.ndarray:
    """The integral of the product of two profiles, which broadcast (equation 151).

    Of (gamma + 1) tau^gamma / t^(gamma + 1) over [0, t], t the step, and its like.
    """
    first, last = np.minimum(step, other_step), np.maximum(step, other_step)
    power = np.where(np.less(step, other_step), other_gamma, gamma)
    scale = (gamma + 1) * (other_gamma + 1) / (gamma + other_gamma + 1)
    return scale * (first / last) ** power / last


def weights(
    snapshots: Sequence[tuple[int, float]], std: float, step: int
) -> tuple[np.ndarray, float]:
    """How much of each snapshot makes the average of `std` at `step`.

    Args:
      snapshots: (step, std) of n averages, none later than `step`.
      std, step: of the one that is wanted.

    Returns:
      ((n,) float64 with sum 1, the distance of what they make from the profile wanted,
      a fraction of its norm).
    """
    steps, stds = np.array(snapshots, np.float64).T
    gammas, gamma = np.array([exponent(s) for s in stds]), exponent(std)
    among = inner_product(gammas[:, None], steps[:, None], gammas, steps)
    wanted = inner_product(gammas, steps, gamma, step)
    found = np.linalg.lstsq(among, wanted, rcond=1e-12)[0]
    found /= found.sum()
    square = inner_product(gamma, step, gamma, step)
    error = found @ among @ found - 2 * found @ wanted + square
    return found, float(np.sqrt(max(error, 0) / square))
