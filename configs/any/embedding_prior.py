"""A diffusion prior of any embedding, on what configs/any/align.py put together.

    python -m unclip_jax.train --config=configs/any/embedding_prior.py \\
        --workdir=runs/any/prior
"""

from configs import common


def get_config():
    """The paper's sequence; 4 layers of width 256."""
    c = common.train("embedding_prior", steps=2000, batch_size=128, ema_decay=0.999)
    c.data = dict(source="aligned", path="runs/any/records/train", feed="arrays")
    c.model = dict(width=256, depth=4, num_heads=4)
    c.optimizer = common.adamw(5e-4, 100, "cosine", weight_decay=0.01)
    c.checkpoint = dict(every=500)
    return c
