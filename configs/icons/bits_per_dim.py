"""The likelihood of held-out icons by the decoder, in bits per dimension.

    python -m unclip_jax.evaluate --config=configs/icons/bits_per_dim.py \\
        --workdir=runs/icons/bits_per_dim

Writes bits_per_dim.json into the workdir.
"""

import ml_collections


def get_config():
    """Every key is needed; see unclip_jax/evaluation/bits_per_dim.py."""
    c = ml_collections.ConfigDict()
    c.model = "exports/icons"
    c.data = dict(source="records", path="runs/icons/records/validation")
    c.count = 64  # images
    c.seed = 0
    c.bits_per_dim = dict(batch_size=32)
    return c
