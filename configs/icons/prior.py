"""The diffusion prior on icons: captions -> CLIP image embeddings.

python -m unclip_jax.train --config=configs/icons/prior.py --workdir=runs/icons/prior
"""

from configs import common


def get_config():
    """The paper's sequence and losses; 4 layers of width 128 instead of 24 of 2048."""
    c = common.train("prior", steps=600, batch_size=128, ema_decay=0.99)
    c.data = common.records("icons", feed="arrays")
    c.model = dict(width=128, depth=4, num_heads=4)
    c.diffusion = dict(sampling_steps=25, guidance=2.0)
    c.optimizer = common.adamw(1e-3, 50, "cosine", weight_decay=0.06, b2=0.96, eps=1e-6)
    c.checkpoint = dict(every=300)
    c.evaluators = common.score_prior("icons", every=200, count=256)
    return c
