"""CLIP on emoji: any folder of parquet files with small pictures and captions.

    python -m unclip_jax.train --config=configs/emoji/clip.py --workdir=runs/emoji/clip

Expects data/emoji64/train.parquet and validation.parquet (columns key, image, caption)
or another folder as --config.data.path. Look at it first:

    python -m unclip_jax.embed --inspect --config=configs/emoji/embed.py \\
        --workdir=runs/emoji/records

Also trains the tokenizer, on the captions, into runs/emoji/clip/tokenizer.
"""

import ml_collections


def get_config():
    """64x64 pictures in patches of 16: as cheap a picture as configs/icons."""
    c = ml_collections.ConfigDict()
    c.stage = "clip"
    c.seed = 0
    c.steps = 800
    c.batch_size = 128
    c.grad_accum = 1
    c.compute_dtype = "float32"
    c.data = dict(
        source="parquet",
        path="data/emoji64",
        files="train*.parquet",
        image_size=64,
        feed="arrays",  # "tf" for what does not fit into memory
        tokenizer="",  # "" trains one on the captions; or a folder or public name
        vocab_size=2048,
        context_length=24,
    )
    c.model = dict(
        embed_dim=128,
        patch_size=16,
        vision_width=128,
        vision_depth=4,
        vision_heads=4,
        text_width=128,
        text_depth=2,
        text_heads=4,
    )
    c.diffusion = dict()
    c.stage_options = dict(max_logit_scale=100.0, group=0, sam_rho=0.0)
    c.optimizer = dict(
        learning_rate=1e-3,
        weight_decay=0.05,
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        warmup_steps=50,
        schedule="cosine",
        grad_clip_norm=1.0,
    )
    c.ema_decay = 0.98
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.sharding_rules = ()
    c.log_every = 20
    c.checkpoint = dict(every=200, keep=2)
    c.preview = dict(every=0, count=0)  # CLIP draws nothing
    held_out = dict(files="validation*.parquet")
    c.evaluators = dict(retrieval=dict(every=200, count=224, data=held_out))
    return c
