"""The autoregressive prior on icons: captions -> codes of CLIP image embeddings.

    python -m unclip_jax.train --config=configs/icons/ar_prior.py \\
        --workdir=runs/icons/ar_prior
"""

import ml_collections


def get_config():
    """The paper's sequence and loss; 2 layers of width 128 instead of 24 of 1664.

    Of 64 dimensions, 20 components hold 98% of the variance. Each more takes its share
    of the loss, which the first ones, that only the caption tells, need to be learnt in
    so few steps; fewer buckets than the paper's do too, for 9,000 examples.
    """
    c = ml_collections.ConfigDict()
    c.stage = "ar_prior"
    c.seed = 0
    c.steps = 1000
    c.batch_size = 128
    c.grad_accum = 1
    c.compute_dtype = "float32"
    c.data = dict(source="records", path="runs/icons/records/train", feed="arrays")
    c.model = dict(
        width=128,
        depth=2,
        num_heads=4,
        context=29,
        text_width=64,
        text_depth=1,
        text_heads=2,
        num_components=20,
        num_buckets=32,
    )
    c.diffusion = dict()
    c.stage_options = dict(drop_text=0.1, embedding="standardize")
    c.optimizer = dict(
        learning_rate=3e-3,
        weight_decay=0.04,
        b1=0.9,
        b2=0.98,
        eps=1e-8,
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
