"""Your images as Kandinsky 2.2 sees them: embeddings of its CLIP, and latents.

    python -m unclip_jax.embed --config=configs/kandinsky22/embed.py \\
        --config.data.path=PICTURES --workdir=runs/kandinsky22/records

PICTURES holds images with captions (docs/data.md). The two folders are those that
Kandinsky is published in. Records keep small images besides, for previews' sake.
"""

import ml_collections


def get_config():
    """See unclip_jax/embedding/config.py for every key and its default."""
    c = ml_collections.ConfigDict()
    c.clip = "kandinsky-2-2-prior"
    c.autoencoder = "kandinsky-2-2-decoder"  # for the decoder; the prior needs none
    c.data = dict(source="folder", path="pictures", image_size=512)
    c.splits = dict(train=dict())
    c.image_size = 64  # of the images that are kept; CLIP and autoencoder see 512
    c.text_states = True  # for the prior; the decoder needs none
    c.batch_size = 32
    c.shard_size = 2000
    c.compute_dtype = "bfloat16"
    return c
