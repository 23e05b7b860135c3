"""The autoregressive prior on icons: captions -> codes of CLIP image embeddings.

    python -m unclip_jax.train --config=configs/icons/ar_prior.py \\
        --workdir=runs/icons/ar_prior
"""

from configs import common


def get_config():
    """The paper's sequence and loss; 2 layers of width 128 instead of 24 of 1664.

    Of 64 dimensions, 20 components hold 98% of the variance. Each more takes its share
    of the loss, which the first ones, that only the caption tells, need to be learnt in
    so few steps; fewer buckets than the paper's do too, for 9,000 examples.
    """
    c = common.train("ar_prior", steps=1000, batch_size=128, ema_decay=0.99)
    c.data = common.records("icons", feed="arrays")
    c.model = dict(
        width=128,
        depth=2,
        num_heads=4,
        context=29,
        text_width=64,
        text_depth=1,
        text_heads=2,
        num_components=20,
        num_buckets=32,
    )
    c.optimizer = common.adamw(3e-3, 50, "cosine", weight_decay=0.04, b2=0.98)
    c.checkpoint = dict(every=300)
    return c
