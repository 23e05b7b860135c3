"""The paper's autoregressive prior: 24 layers of width 1664, on a pod.

    python -m unclip_jax.train --config=configs/paper/ar_prior.py \\
        --workdir=runs/paper/ar_prior

1.21B parameters of text encoder, 0.82B of latent decoder, and 0.10B of token embedding.
"""

import ml_collections


def get_config():
    """Table 3, column "AR prior"."""
    c = ml_collections.ConfigDict()
    c.stage = "ar_prior"
    c.seed = 0
    c.steps = 1_000_000
    c.batch_size = 4096
    c.grad_accum = 1
    c.compute_dtype = "bfloat16"
    c.data = dict(source="records", path="runs/paper/records/train", feed="tf")
    # text encoder context: 256 tokens, which the records decide (CLIP reads the same)
    c.model = dict(
        width=1664,
        depth=24,
        num_heads=26,
        context=384,
        text_width=2048,
        text_depth=24,
        text_heads=32,
        num_components=319,
        num_buckets=1024,
        scan_layers=True,
        remat="full",
    )
    c.diffusion = dict()
    c.stage_options = dict(drop_text=0.1, embedding="unit_scaled")
    c.optimizer = dict(
        learning_rate=1.6e-4,
        weight_decay=4.0e-2,
        b1=0.9,
        b2=0.91,
        eps=1e-10,
        warmup_steps=1000,  # unstated, as are the decay and the clipping
        schedule="constant",
        grad_clip_norm=1.0,
    )
    c.ema_decay = 0.999
    c.mesh = dict(data=-1, fsdp=8, tensor=1)
    c.sharding_rules = ()
    c.log_every = 50
    c.checkpoint = dict(every=2000, keep=3)
    c.preview = dict(every=0, count=0)  # the prior draws embeddings, not pictures
    return c
