"""Noise schedules: float64 tables on the host, looked up inside compiled code."""

import dataclasses
import math
import re

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from unclip_jax.errors import UsageError
from unclip_jax.shapes import Array, HostPath, Table


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """A discrete variance-preserving process of T steps (Ho et al. 2020).

    Attributes:
      betas: (T,) float64 in (0, 1); the last may be 1, so that nothing of x_0 is left.
    """

    betas: np.ndarray

    def __post_init__(self):
        betas = np.asarray(self.betas, np.float64)
        inside = (betas > 0) & (betas < 1)
        if betas.ndim == 1 and betas.size > 1:
            inside[-1] |= betas[-1] == 1
        if betas.ndim != 1 or not inside.all():
            raise UsageError("betas must be a vector of numbers between 0 and 1")
        object.__setattr__(self, "betas", betas)

    @property
    def num_steps(self) -> int:
        """T, the number of training timesteps."""
        return len(self.betas)

    @property
    def alphas_cumprod(self) -> np.ndarray:
        """(T,) float64, the product of 1 - beta up to and including each step."""
        return np.cumprod(1 - self.betas)


def squared_cosine(t: float) -> float:
    """alpha_bar at t in [0, 1] (Nichol & Dhariwal 2021, equation 17)."""
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


ZERO_SNR = "zero_snr:"


def make_schedule(
    name: str, num_steps: int = 1000, shift: float | None = None
) -> Schedule:
    """The schedule called `name`: "cosine", "linear", "scaled_linear" or "flow".

    cosine is IDDPM's with betas capped at 0.999; linear is DDPM's 1e-4 to 0.02 at
    1000 steps, rescaled for other lengths as guided-diffusion does; scaled_linear
    is latent diffusion's 0.00085 to 0.012, linear in the square root. Both take other
    betas, which are not rescaled: "linear:0.00085:0.012" is Kandinsky's. flow has the
    signal-to-noise ratios of the straight path (1 - u) x_0 + u epsilon at the T
    midpoints u of [0, 1], so that hardly anything of x_0 is left at the last.
    "zero_snr:NAME" is another schedule without a trace of x_0 at the last timestep,
    where "linear" leaves 0.6% of it: all signals are lowered alike and stretched to
    begin as before (Lin et al. 2023, algorithm 1).

    Args:
      name: the schedule.
      num_steps: T.
      shift: divides the ratio of signal to noise of every timestep: sqrt(m / n) suits
        images of m pixels as 1 suits those of n (Esser et al. 2024, section 5.3.2:
        u -> shift u / (1 + (shift - 1) u)). None is 1.

    Raises:
      UsageError: an unknown name, no steps, or a shift that is not positive.
    """
    if num_steps < 1:
        raise UsageError(f"num_steps must be at least 1, got {num_steps}")
    if shift is not None and not 0 < shift < math.inf:
        raise UsageError(f"shift must be a positive number, got {shift}")
    schedule = _unshifted(name, num_steps)
    return schedule if shift in (None, 1) else _shifted(schedule, shift)


def _unshifted(name: str, num_steps: int) -> Schedule:
    if name.startswith(ZERO_SNR) and num_steps > 1:
        bar = _unshifted(name.removeprefix(ZERO_SNR), num_steps).alphas_cumprod
        signal = np.sqrt(bar)
        signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
        return _with_signals(signal**2)
    if name == "cosine":
        t = np.arange(num_steps + 1) / num_steps
        bar = np.array([squared_cosine(u) for u in t])
        return Schedule(np.minimum(1 - bar[1:] / bar[:-1], 0.999))
    if name == "linear":
        scale = 1000 / num_steps
        return Schedule(np.linspace(scale * 1e-4, min(scale * 0.02, 0.999), num_steps))
    if name == "scaled_linear":
        return Schedule(np.linspace(0.00085**0.5, 0.012**0.5, num_steps) ** 2)
    if name == "flow":
        u = (np.arange(num_steps) + 0.5) / num_steps
        return _with_signals((1 - u) ** 2 / ((1 - u) ** 2 + u**2))
    number = r"([0-9.e-]+)"
    if betas := re.fullmatch(rf"(linear|scaled_linear):{number}:{number}", name):
        power = 2 if betas[1] == "scaled_linear" else 1
        first, last = (float(beta) ** (1 / power) for beta in betas.groups()[1:])
        return Schedule(np.linspace(first, last, num_steps) ** power)
    raise UsageError(
        f"noise schedule {name!r}: expected 'cosine', 'flow', 'linear' or "
        "'scaled_linear', or one of the linear ones with its betas, "
        "'linear:0.00085:0.012', each also after 'zero_snr:'"
    )


def _shifted(schedule: Schedule, shift: float) -> Schedule:
    bar = schedule.alphas_cumprod
    return _with_signals(bar / (bar + shift**2 * (1 - bar)))


def _with_signals(alphas_cumprod) -> Schedule:
    return Schedule(1 - alphas_cumprod / np.append(1.0, alphas_cumprod[:-1]))


def respace(num_train_steps: int, spec: int | str) -> HostPath:
    """Timesteps of a process of T steps, by the respacing of guided-diffusion.

    Args:
      num_train_steps: T.
      spec: one of
        n, an integer or its digits: n timesteps from T - 1 down to 0, evenly strided
          (a single one is T - 1; guided-diffusion's, 0, has nothing left to remove);
        "ddimN": every k-th timestep from 0 up, for the k that leaves N of them;
        "a,b,c": the process in as many sections of equal size, the least noisy first,
          with a, b and c evenly strided timesteps;
        "fast27": GLIDE's "10,10,3,2,2" with T - 3 in place of T - 1;
        "leadingN" or "leadingN+K": 0, T // N, 2 (T // N), ..., N of them, plus K: the
          spacing that diffusers calls leading, with steps_offset K.

    Returns:
      (n,) int64, descending.

    Raises:
      UsageError: a respacing that is not one of these, or that T does not allow.
    """
    count = count_of(spec)
    if count is not None:
        return strided_timesteps(num_train_steps, count)
    spec = str(spec)
    if spec == "fast27":
        steps = respace(num_train_steps, "10,10,3,2,2")
        return np.append(num_train_steps - 3, steps[1:])
    if named := re.fullmatch(r"ddim(\d+)", spec):
        return _every_kth(num_train_steps, int(named[1]))
    if named := re.fullmatch(r"leading(\d+)(?:\+(\d+))?", spec):
        return _leading(num_train_steps, int(named[1]), int(named[2] or 0))
    if re.fullmatch(r"\d+(,\d+)+", spec):
        return _sections(num_train_steps, [int(count) for count in spec.split(",")])
    raise UsageError(
        f"sampling steps {spec!r}: expected a number, 'ddimN' with a number N, counts "
        "of sections such as '10,10,3,2,2', 'fast27', or 'leadingN'"
    )


def count_of(spec: int | str) -> int | None:
    """The number of steps, if `spec` of `respace` is one or its digits, else None."""
    if isinstance(spec, str):
        return int(spec) if re.fullmatch(r"\d+", spec) else None
    return spec


def strided_timesteps(num_train_steps: int, num_steps: int) -> HostPath:
    """`num_steps` timesteps from T - 1 down to 0, evenly strided: see `respace`."""
    check_count(num_steps, num_train_steps)
    if num_steps == 1:
        return np.array([num_train_steps - 1])
    return _evenly(num_train_steps, num_steps)[::-1].copy()


def _evenly(size, count):
    """(count,) ascending integers from 0 to size - 1; 0 alone if count is 1.

    The stride is added up and rounded to even as in guided-diffusion: i (size - 1) /
    (count - 1), rounded, is another integer for some counts.
    """
    stride = (size - 1) / max(count - 1, 1)
    return np.cumsum([0.0] + (count - 1) * [stride])[:count].round().astype(np.int64)


def _every_kth(num_train_steps, count):
    for stride in range(1, num_train_steps):
        steps = range(0, num_train_steps, stride)
        if len(steps) == count:
            return np.array(steps)[::-1].copy()
    raise UsageError(
        f"sampling steps 'ddim{count}': no whole stride leaves {count} of "
        f"{num_train_steps} timesteps"
    )


def _leading(num_train_steps, count, offset):
    check_count(count, num_train_steps)
    steps = np.arange(count) * (num_train_steps // count) + offset
    if steps[-1] >= num_train_steps:
        raise UsageError(
            f"sampling steps 'leading{count}+{offset}': the first is {steps[-1]}, and "
            f"there are {num_train_steps} timesteps"
        )
    return steps[::-1].copy()


def _sections(num_train_steps, counts):
    parts = np.array_split(np.arange(num_train_steps), len(counts))
    pairs = list(zip(parts, counts, strict=True))
    if not any(counts) or any(count > len(part) for part, count in pairs):
        raise UsageError(
            f"sampling steps {','.join(map(str, counts))!r}: expected at most "
            f"{len(parts[-1])} in each of {len(parts)} sections, and one at least"
        )
    return np.concatenate([part[_evenly(len(part), n)] for part, n in pairs])[::-1]


def head(schedule: Schedule, min_signal: float) -> Schedule:
    """The timesteps of `schedule` whose signal sqrt(abar) is at least `min_signal`.

    Raises UsageError if there are none.
    """
    count = int((np.sqrt(schedule.alphas_cumprod) >= min_signal).sum())
    if not count:
        raise UsageError(f"no timestep has a signal of {min_signal} or more")
    return Schedule(schedule.betas[:count])


# The half log-SNR where DPM-Solver starts on the cosine schedule (diffusers'
# lambda_min_clipped); the end of the linear one, -5.06, is just above it.
LEAST_HALF_LOG_SNR = -5.1


def log_snr_timesteps(schedule: Schedule, num_steps: int) -> HostPath:
    """`num_steps` timesteps down to 0, evenly spaced in the half log-SNR.

    That is lambda = log(abar / (1 - abar)) / 2, the spacing of DPM-Solver (Lu et al.
    2022), rounded to timesteps that are still free: all of them where the schedule is
    the coarser. The first is T - 1, or the last whose lambda is not below
    LEAST_HALF_LOG_SNR: the cosine schedule goes down to -9.9, in 4 of its 1000
    timesteps, where a third of the steps would change nothing but noise. Earlier ones
    are used where there would not be enough otherwise.
    """
    check_count(num_steps, schedule.num_steps)
    bar = schedule.alphas_cumprod
    with np.errstate(divide="ignore"):  # -inf where no signal is left
        half_log_snr = np.log(bar / (1 - bar)) / 2
    count = max((half_log_snr >= LEAST_HALF_LOG_SNR).sum(), num_steps)
    half_log_snr = half_log_snr[:count]
    even = np.linspace(half_log_snr[-1], half_log_snr[0], num_steps)
    nearest = np.abs(half_log_snr - even[:, None]).argmin(1)
    i = np.arange(num_steps)
    descending = np.minimum.accumulate(nearest + i) - i  # strictly: none twice
    return np.maximum(descending, num_steps - 1 - i)


def check_count(num_steps: int, most: int):
    """Raises UsageError unless `num_steps` is an integer between 1 and `most`."""
    whole = isinstance(num_steps, int | np.integer) and not isinstance(num_steps, bool)
    if not whole or not 1 <= num_steps <= most:
        raise UsageError(
            f"sampling steps must be a whole number from 1 to {most}, got {num_steps!r}"
        )


def gather(table: Table, t: Int[Array, "*batch"], ndim: int) -> Float[Array, "..."]:
    """table[t] in float32, shaped (B, 1, ..., 1) to broadcast over `ndim` axes."""
    values = jnp.asarray(table, jnp.float32)[t]
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))
