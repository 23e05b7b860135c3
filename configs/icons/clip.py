"""CLIP on icons, the first stage: four minutes on two CPU cores.

    python -m unclip_jax.train --config=configs/icons/clip.py --workdir=runs/icons/clip

Also trains the tokenizer, on the captions, into runs/icons/clip/tokenizer.
"""

import ml_collections


def get_config():
    """24 nouns x 8 colours x 7 other backgrounds, 15% of them held out."""
    c = ml_collections.ConfigDict()
    c.stage = "clip"
    c.seed = 0
    c.steps = 800
    c.batch_size = 128
    c.grad_accum = 1
    c.compute_dtype = "float32"
    c.data = dict(
        source="icons",
        split="train",
        image_size=32,
        nouns=24,
        colours=8,
        backgrounds=8,
        feed="arrays",
        tokenizer="",  # "" trains one on the captions; or a folder or public name
        vocab_size=640,
        context_length=16,
    )
    c.model = dict(
        embed_dim=64,
        patch_size=8,
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
    c.checkpoint = dict(every=400, keep=2)
    c.preview = dict(every=0, count=0)  # CLIP draws nothing
    held_out = dict(split="held_out")  # combinations that training never sees
    colours = ("red", "blue", "yellow", "white", "black", "green", "purple", "orange")
    c.evaluators = dict(  # scores in metrics.jsonl, of the EMA; 256 pictures, 24 nouns
        retrieval=dict(every=200, count=256, data=held_out),
        zero_shot=dict(
            every=200,
            count=512,
            data=held_out,
            label="noun",
            templates=tuple(f"a picture of a {colour} {{}}" for colour in colours),
        ),
    )
    return c
