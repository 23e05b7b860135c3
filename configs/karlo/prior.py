"""Karlo's diffusion prior: fine-tunes the public weights, or trains the same anew.

    python -m unclip_jax.embed --config=configs/icons/embed.py --config.clip=CLIP \\
        --config.text_states=True --config.data=... --workdir=runs/karlo/records
    python -m unclip_jax.train --config=configs/karlo/prior.py \\
        --config.init_from=KARLO --workdir=runs/karlo/prior

CLIP is a native export of Karlo's CLIP (ViT-L/14), KARLO the folder of its pipeline
in diffusers' format, or of the prior in it; or a native export with a prior. Without
init_from the prior starts from nothing. Kandinsky's 2.2 differs in its CLIP (bigG, 1280
numbers), which the records bring along, and in --config.diffusion.clip=10.

1.02B parameters: 20 bytes each with gradient, optimizer and average, 20 GB in all.
"""

import ml_collections


def get_config():
    """The published sizes; the rates of a fine-tuning, which were not published."""
    c = ml_collections.ConfigDict()
    c.stage = "prior"
    c.init_from = ""  # folder of the parameters to start from
    c.seed = 0
    c.steps = 20_000
    c.batch_size = 512
    c.grad_accum = 1
    c.compute_dtype = "bfloat16"
    c.data = dict(source="records", path="runs/karlo/records/train", feed="tf")
    # 768 numbers and 77 tokens, which the records decide
    c.model = dict(
        caption="clip_states",
        width=2048,
        depth=20,
        num_heads=32,
        scan_layers=True,
        remat="full",
    )
    c.diffusion = dict(
        schedule="cosine",
        num_steps=1000,
        prediction="x0",
        clip=5.0,
        sampler="ddpm",  # the last four: as Karlo draws
        sampling_steps=25,
        variance="fixed_small",
        guidance=4.0,
    )
    c.stage_options = dict(drop_text=0.1, embedding="standardize")
    c.optimizer = dict(
        learning_rate=1e-5,
        weight_decay=6.0e-2,
        b1=0.9,
        b2=0.96,
        eps=1e-6,
        warmup_steps=500,
        schedule="constant",
        grad_clip_norm=1.0,
    )
    c.ema_decay = 0.999
    c.mesh = dict(data=-1, fsdp=8, tensor=1)
    c.sharding_rules = ()
    c.log_every = 50
    c.checkpoint = dict(every=1000, keep=2)
    c.preview = dict(every=0, count=0)  # the prior draws embeddings, not pictures
    return c
