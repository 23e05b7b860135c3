"""The records of the paper's priors and decoder, on a pod or on any machines.

    python -m unclip_jax.embed --config=configs/paper/embed.py \\
        --workdir=runs/paper/records

Writes train and validation there: 64-pixel images (what the decoder draws; JPEG with
all its chroma), captions, tokens and the embeddings that CLIP gives of 256 pixels.
Started on several hosts, each writes its share of the files.
"""

import ml_collections

from configs import common


def get_config():
    """See unclip_jax/embedding/config.py for every key and its default."""
    c = ml_collections.ConfigDict()
    c.clip = "runs/paper/clip"  # or a public one, see README.md
    c.data = common.photos(256)
    c.splits = dict(train=dict(), validation=dict(path="data/validation"))
    c.image_size = 64
    c.batch_size = 1024
    c.image_format = "jpeg"
    c.compute_dtype = "bfloat16"
    c.min_similarity = -1.0  # 0.3 is what LAION kept of its crawl
    return c
