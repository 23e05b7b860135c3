"""A prior between two encoders that nobody here trained: MiniLM -> EfficientNet.

    python -m unclip_jax.train --config=configs/any/text_to_image_embedding.py \\
        --workdir=runs/any_emoji/prior

configs/any/align_emoji.py makes its data, docs/any_prior.md has what it reached.
"""

from configs import common
from configs.any import embedding_prior, embedding_regression

STAGES = {"": embedding_prior, "regression": embedding_regression}


def get_config(variant=""):
    """The config of embedding_prior.py; `:regression` after the name: one pass."""
    common.check_variant(variant, "regression")
    c = STAGES[variant].get_config()
    c.steps = 1500
    c.data.path = "runs/any_emoji/records/train"
    c.model = dict(width=192, depth=3, num_heads=3, dropout=0.2)
    data = dict(path="runs/any_emoji/records/validation")
    c.evaluators = dict(embedding=dict(every=500, count=302, data=data))
    return c
