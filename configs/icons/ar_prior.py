"""The autoregressive prior on icons: captions -> codes of CLIP image embeddings.

    python -m unclip_jax.train --config=configs/icons/ar_prior.py \\
        --workdir=runs/icons/ar_prior
"""

import ml_collections


def get_config():
    """The paper's sequence and loss; 3 layers of width 128 instead of 24 of 1664."""
    c = ml_collections.ConfigDict()
    c.stage = "ar_prior"
    c.seed = 0
    c.steps = 600
    c.batch_size = 128
    c.grad_accum = 1
    c.compute_dtype = "float32"
    c.data = dict(source="records", path="runs/icons/records/train", feed="arrays")
    c.model = dict(
        width=128,
        depth=3,
        num_heads=4,
        context=64,
        text_width=64,
        text_depth=1,
        text_heads=2,
        num_components=40,
        num_buckets=128,
    )
    c.diffusion = dict()
    c.stage_options = dict(drop_text=0.1, embedding="standardize")
    c.optimizer = dict(
        learning_rate=1e-3,
        weight_decay=0.04,
        b1=0.9,
        b2=0.91,
        eps=1e-10,
        warmup_steps=50,
        schedule="cosine",
        grad_clip_norm=1.0,
    )
    c.ema_decay = 0.99
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.sharding_rules = ()
    c.log_every = 50
    c.checkpoint = dict(every=300, keep=2)
    c.preview = dict(every=0, count=0)  # the prior draws embeddings, not pictures
    return c
