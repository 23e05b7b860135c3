"""Emoji with their CLIP embeddings.

    python -m unclip_jax.embed --config=configs/emoji/embed.py \\
        --workdir=runs/emoji/records

Writes runs/emoji/records/train and runs/emoji/records/validation. With --inspect it
reports on the data instead and draws a sheet of it.
"""

import ml_collections

from configs import common


def get_config():
    """See unclip_jax/embedding/config.py for every key and its default."""
    c = ml_collections.ConfigDict()
    c.clip = "runs/emoji/clip"
    c.data = common.emoji()
    c.splits = dict(
        train=dict(files="train*.parquet"),
        validation=dict(files="validation*.parquet"),
    )
    c.shard_size = 2000
    return c
