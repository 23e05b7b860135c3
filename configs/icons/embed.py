"""Icons with their CLIP embeddings: under a minute on two CPU cores.

    python -m unclip_jax.embed --config=configs/icons/embed.py \\
        --workdir=runs/icons/records

Writes runs/icons/records/train and runs/icons/records/validation (the combinations
that training never sees).
"""

import ml_collections


def get_config():
    """Every key but text_states is required; an unknown key is refused."""
    c = ml_collections.ConfigDict()
    c.clip = "runs/icons/clip"  # folder of a run of stage clip, or of an export
    c.data = dict(  # the source, as in training
        source="icons",
        image_size=32,
        nouns=24,
        colours=8,
        backgrounds=8,
    )
    c.splits = dict(  # folder -> what differs from config.data
        train=dict(split="train"),
        validation=dict(split="validation"),
    )
    c.batch_size = 256  # over all devices of a process
    c.shard_size = 2000  # examples per file
    c.image_format = "png"  # or "jpeg"
    c.image_size = 0  # side in the records, e.g. 64 where CLIP sees 256; 0: the same
    c.compute_dtype = "float32"
    c.min_similarity = -1.0  # cosine of image and caption; what is below is left out
    c.text_states = False  # True for a prior with model.caption="clip_states"
    return c
