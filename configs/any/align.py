"""Two arrays as data for an embedding prior: name your own.

    python -m unclip_jax.align --config=configs/any/align.py \\
        --workdir=runs/any/records --config.target.path=targets.npy \\
        --config.conditions.condition.path=conditions.npy

Several conditions, sequences with masks, keys: copy this file. With --inspect the
arrays are only described.
"""

import ml_collections


def get_config():
    """See unclip_jax/data/aligned/config.py for every key and its default."""
    c = ml_collections.ConfigDict()
    c.target = dict(path="targets.npy")
    c.conditions = dict(condition=dict(path="conditions.npy"))
    c.splits = dict(train=0.9, validation=0.1)
    return c
