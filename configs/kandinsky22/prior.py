"""Kandinsky 2.2's prior: fine-tunes the public weights, or trains the same anew.

    python -m unclip_jax.train --config=configs/kandinsky22/prior.py \\
        --config.init_from=kandinsky-2-2-prior --workdir=runs/kandinsky22/prior

on what configs/kandinsky22/embed.py wrote. Captions are dropped from a part of the
rows, for guidance. It is Karlo's prior with embeddings of 1280 numbers, 1.03B
parameters: 20 bytes each with gradient, optimizer and average, 21 GB in all.
"""

from configs import common
from configs.karlo import prior as karlo


def get_config():
    """As Karlo's, but for the data and the bound on x_0."""
    c = karlo.get_config()
    c.data = common.records("kandinsky22")
    c.diffusion.clip = 10.0
    return c
