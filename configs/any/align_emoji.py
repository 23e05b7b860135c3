"""Emoji as data for an embedding prior: captions and vendors -> image embeddings.

    python docs/encode_emoji.py --data=data/emoji64 --out=runs/any_emoji/arrays
    python -m unclip_jax.align --config=configs/any/align_emoji.py \\
        --workdir=runs/any_emoji/records

Neither encoder was trained here: MiniLM (384 numbers) for captions, EfficientNet-Lite2
(1280 numbers) for images, both as packages of PyPI carry them.
"""

import ml_collections

ARRAYS = "runs/any_emoji/arrays"


def get_config():
    """The split is the data set's own: no emoji is in both."""
    c = ml_collections.ConfigDict()
    c.target = dict(path=f"{ARRAYS}/image.npy", keys=f"{ARRAYS}/keys.npy")
    c.conditions = dict(
        caption=dict(path=f"{ARRAYS}/caption.npy"),
        vendor=dict(path=f"{ARRAYS}/vendor.npy"),
    )
    c.split_names = f"{ARRAYS}/split.npy"
    c.encoder = "EfficientNet-Lite2, pooled features at 64 pixels"
    return c
