"""Icons with their CLIP embeddings: under a minute on two CPU cores.

    python -m unclip_jax.embed --config=configs/icons/embed.py \\
        --workdir=runs/icons/records

Writes runs/icons/records/train and runs/icons/records/validation (the combinations
that training never sees).
"""

import ml_collections

from configs import common


def get_config():
    """See unclip_jax/embedding/config.py for every key and its default."""
    c = ml_collections.ConfigDict()
    c.clip = "runs/icons/clip"  # folder of a run of stage clip, or of an export
    c.data = common.icons()  # the source, as in training
    c.splits = dict(  # folder -> what differs from config.data
        train=dict(split="train"),
        validation=dict(split="validation"),
    )
    c.shard_size = 2000
    return c
