"""The diffusion prior on emoji: captions -> CLIP image embeddings.

python -m unclip_jax.train --config=configs/emoji/prior.py --workdir=runs/emoji/prior
"""

import ml_collections


def get_config():
    """The paper's sequence and losses; 4 layers of width 128 instead of 24 of 2048."""
    c = ml_collections.ConfigDict()
    c.stage = "prior"
    c.seed = 0
    c.steps = 800
    c.batch_size = 128
    c.grad_accum = 1
    c.compute_dtype = "float32"
    c.data = dict(source="records", path="runs/emoji/records/train", feed="arrays")
    c.model = dict(width=128, depth=4, num_heads=4)
    c.diffusion = dict(schedule="cosine", num_steps=1000, prediction="x0")
    c.stage_options = dict(drop_text=0.1, embedding="standardize")
    c.optimizer = dict(
        learning_rate=1e-3,
        weight_decay=0.06,
        b1=0.9,
        b2=0.96,
        eps=1e-6,
        warmup_steps=50,
        schedule="cosine",
        grad_clip_norm=1.0,
    )
    c.ema_decay = 0.99
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.sharding_rules = ()
    c.log_every = 50
    c.checkpoint = dict(every=400, keep=2)
    c.preview = dict(every=0, count=0)  # the prior draws embeddings, not pictures
    held_out = dict(path="runs/emoji/records/validation")
    c.evaluators = dict(prior=dict(every=400, count=224, data=held_out))
    return c
