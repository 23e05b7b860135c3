"""Draws docs/solvers.png: the error of the ODE solvers against calls of the model.

    pip install matplotlib
    python -m docs.plot_solvers

The data are the correlated Gaussian of the tests, where the exact flow is known.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.schedule import make_schedule

ROOT = pathlib.Path(__file__).parents[1]
CALLS = (6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
# name -> (label, calls -> steps)
SOLVERS = {
    "ddim": ("DDIM", lambda calls: calls),
    "dpmpp_2m": ("DPM-Solver++(2M)", lambda calls: calls),
    "heun": ("Heun", lambda calls: (calls + 1) // 2),
}


def errors(gaussian, name: str, schedule) -> list[float]:
    """Root mean square distance from the exact flow, for each of CALLS."""
    _, steps_of = SOLVERS[name]
    predict = gaussian.predictor(schedule)
    keys = jax.random.split(jax.random.key(0), 512)
    x_T = samplers.normal(keys, (2,))
    found = []
    for calls in CALLS:
        steps = samplers.timesteps(name, schedule, steps_of(calls))
        x = samplers.SAMPLERS[name](predict, schedule, x_T, steps, keys)
        exact = gaussian.flow(schedule, x_T, schedule.num_steps - 1)
        found.append(float(jnp.sqrt(np.mean((x - exact) ** 2))))
    return found


def main():
    import matplotlib.pyplot as plt

    sys.path.insert(0, str(ROOT / "tests" / "diffusion"))
    import gaussian

    figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), sharey=True)
    for panel, schedule in zip(axes, ("cosine", "linear"), strict=True):
        for name, (label, _) in SOLVERS.items():
            found = errors(gaussian, name, make_schedule(schedule))
            panel.loglog(CALLS, found, marker="o", markersize=3, label=label)
        panel.set(title=f"{schedule} schedule", xlabel="calls of the model")
        panel.set_xticks([8, 16, 32, 64, 128], [8, 16, 32, 64, 128])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    axes[0].set_ylabel("error (data: sd 0.42)")
    axes[1].legend()
    figure.tight_layout()
    figure.savefig(ROOT / "docs" / "solvers.png", dpi=120)


if __name__ == "__main__":
    main()
