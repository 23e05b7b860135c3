"""What of ours is handed to pipelines of diffusers: noise, and tables in float64."""

import numpy as np

from unclip_jax.diffusion import samplers
from unclip_jax.diffusion.schedule import make_schedule
from unclip_jax.generation import sampling

SEED = 7


def to_torch(x):
    """(B, H, W, C) -> (B, C, H, W); other shapes as they are."""
    import torch

    return torch.from_numpy(np.moveaxis(x, -1, 1).copy() if x.ndim == 4 else x)


def our_noise(stream, what, shape, step=None):
    """(2, *shape) of the pictures 0 and 1 as generation draws it.

    `stream` is sampling.PRIOR or DECODER, or (UPSAMPLER, size).
    """
    path = [*(stream if isinstance(stream, tuple) else (stream,)), what]
    if stream == sampling.PRIOR:
        path.append(0)  # the only candidate
    if step is not None:
        path.append(step)
    keys = sampling.fold_keys(np.uint32(SEED), np.arange(2), *path)
    return np.array(samplers.normal(keys, shape))


def hand_noise(monkeypatch, module, stream, shape, steps):
    """Makes a scheduler of theirs draw what we draw at steps 0, 1, ..."""
    queue = [to_torch(our_noise(stream, sampling.STEPS, shape, i)) for i in steps]
    path = f"diffusers.schedulers.{module}.randn_tensor"
    monkeypatch.setattr(path, lambda shape, **_: queue.pop(0)[: shape[0]])
    return queue


def use_our_tables(monkeypatch, scheduler, name):
    """Gives a scheduler of theirs the tables of our schedule `name`, in float64."""
    import torch

    tables = make_schedule(name)
    exact = {
        "alphas_cumprod": tables.alphas_cumprod,
        "alphas": 1 - tables.betas,
        "betas": tables.betas,
        "one": np.float64(1),
    }
    if not scheduler.config.get("set_alpha_to_one", True):
        exact["final_alpha_cumprod"] = tables.alphas_cumprod[0]
    for table, values in exact.items():
        if hasattr(scheduler, table):
            values = torch.as_tensor(values, dtype=torch.float64)
            monkeypatch.setattr(scheduler, table, values)
