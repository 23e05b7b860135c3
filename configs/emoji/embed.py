"""Emoji with their CLIP embeddings.

    python -m unclip_jax.embed --config=configs/emoji/embed.py \\
        --workdir=runs/emoji/records

Writes runs/emoji/records/train and runs/emoji/records/validation. With --inspect it
reports on the data instead and draws a sheet of it.
"""

import ml_collections


def get_config():
    """Every key but text_states is required; an unknown key is refused."""
    c = ml_collections.ConfigDict()
    c.clip = "runs/emoji/clip"  # folder of a run of stage clip, or of an export
    c.data = dict(  # the source, as in training
        source="parquet",
        path="data/emoji64",
        image_size=64,
    )
    c.splits = dict(  # folder -> what differs from config.data
        train=dict(files="train*.parquet"),
        validation=dict(files="validation*.parquet"),
    )
    c.batch_size = 256  # over all devices of a process
    c.shard_size = 2000  # examples per file
    c.image_format = "png"  # or "jpeg"
    c.image_size = 0  # side in the records, e.g. 64 where CLIP sees 256; 0: the same
    c.compute_dtype = "float32"
    c.min_similarity = -1.0  # cosine of image and caption; what is below is left out
    c.text_states = False  # True for a prior with model.caption="clip_states"
    return c
