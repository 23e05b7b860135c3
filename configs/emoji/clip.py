"""CLIP on emoji: any folder of parquet files with small pictures and captions.

    python -m unclip_jax.train --config=configs/emoji/clip.py --workdir=runs/emoji/clip

Expects data/emoji64/train.parquet and validation.parquet (columns key, image, caption)
or another folder as --config.data.path. Look at it first:

    python -m unclip_jax.embed --inspect --config=configs/emoji/embed.py \\
        --workdir=runs/emoji/records

Also trains the tokenizer, on the captions, into runs/emoji/clip/tokenizer.
"""

from configs import common
from configs.icons import clip


def get_config():
    """64x64 pictures in patches of 16: as cheap a picture as configs/icons."""
    c = clip.get_config()
    c.data = common.emoji(
        files="train*.parquet",
        feed="arrays",  # "tf" for what does not fit into memory
        vocab_size=2048,
        context_length=24,
    )
    c.model.update(embed_dim=128, patch_size=16)
    c.checkpoint.every = 200
    held_out = dict(files="validation*.parquet")
    c.evaluators = dict(retrieval=dict(every=200, count=224, data=held_out))
    return c
