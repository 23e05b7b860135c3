"""A prior between two encoders that nobody here trained: MiniLM -> EfficientNet.

    python -m unclip_jax.train --config=configs/any/text_to_image_embedding.py \\
        --workdir=runs/any_emoji/prior

configs/any/align_emoji.py makes its data, docs/any_prior.md has what it reached.
"""

from configs import common
from configs.any import embedding_prior, embedding_regression


def get_config(variant=""):
    """One pass and a contrastive loss, which finds targets; `:diffusion` draws them."""
    common.check_variant(variant, "diffusion")
    if variant:
        c = embedding_prior.get_config()
        c.steps = 1500
        c.model = dict(width=192, depth=3, num_heads=3, dropout=0.2)
    else:
        c = embedding_regression.get_config()
        c.steps, c.ema_decay = 600, 0.99
        c.model = dict(width=192, depth=2, num_heads=3, dropout=0.2)
        c.stage_options = dict(contrastive=1.0, temperature=0.1)
    c.data.path = "runs/any_emoji/records/train"
    data = dict(path="runs/any_emoji/records/validation")
    c.evaluators = dict(embedding=dict(every=500, count=302, data=data))
    return c
