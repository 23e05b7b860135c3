"""A deterministic prior of any embedding: one pass, no diffusion.

    python -m unclip_jax.train --config=configs/any/embedding_regression.py \\
        --workdir=runs/any/regression
"""

from configs.any import embedding_prior


def get_config():
    """The model and data of embedding_prior.py, another loss."""
    c = embedding_prior.get_config()
    c.stage = "embedding_regression"
    return c
