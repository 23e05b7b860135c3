"""The parameters of a run averaged over any length, from the checkpoints it kept."""

from typing import Any

import jax
import numpy as np

from unclip_jax.errors import UsageError
from unclip_jax.training import checkpoint, power_ema


def open_posthoc(
    workdir, std: float, step: int | None = None
) -> tuple[dict[str, Any], checkpoint.Read, dict, float]:
    """What `checkpoint.open_run` returns, of the average of relative deviation `std`.

    It is made of config.ema_profiles of all checkpoints up to `step` that are there.
    One tensor of each is held at a time, or READ_BYTES of all.

    Args:
      workdir: the run's folder, on a disk or gs://.
      std: of the run up to `step`, see power_ema.
      step: of a checkpoint; None is the newest.

    Returns:
      (shapes, function from a name to its numpy array, meta, the profile's error as of
      power_ema.weights).

    Raises:
      FileNotFoundError, UsageError: as of open_run; a run without profiles.
    """
    power_ema.exponent(std)  # refuses one that is impossible
    with checkpoint.open_checkpoints(workdir, step) as (manager, folder, step):
        steps = [
            s
            for s in sorted(manager.all_steps())
            if s <= step and (folder / str(s) / "profiles").is_dir()
        ]
        if step not in steps:
            raise UsageError(
                f"{workdir} keeps no averages of several lengths: train it with "
                "config.ema_profiles=(0.05, 0.1)"
            )
        items = {s: checkpoint.open_item(manager, folder, s, "profiles") for s in steps}
    snapshots = [(s, name) for s, (tree, _, _) in items.items() for name in tree]
    found, error = power_ema.weights(
        [(s, float(name)) for s, name in snapshots], std, step
    )
    tree, _, meta = items[step]
    limit = checkpoint.READ_BYTES // len(snapshots)
    sources = [items[s][1].again(limit) for s, _ in snapshots]

    def read(path: str) -> np.ndarray:
        like = sources[0].read(f"{snapshots[0][1]}/{path}")
        total = np.zeros(like.shape)
        for (_, name), leaves, weight in zip(snapshots, sources, found, strict=True):
            total += weight * leaves.read(f"{name}/{path}")
        return total.astype(like.dtype)

    one = next(iter(tree.values()))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), one)
    return shapes, read, meta, error
