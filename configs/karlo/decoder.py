"""Karlo's decoder: fine-tunes the public weights, or trains the same anew.

    python -m unclip_jax.embed --config=configs/icons/embed.py --config.clip=CLIP \\
        --config.text_states=True --config.data=... --workdir=runs/karlo/records
    python -m unclip_jax.train --config=configs/karlo/decoder.py \\
        --config.init_from=KARLO --workdir=runs/karlo/decoder

CLIP is a native export of Karlo's CLIP (ViT-L/14), KARLO the folder of its pipeline in
diffusers' format, or a native export with a decoder. Without init_from the decoder
starts from nothing. Pictures of the records have 64 pixels.

893M parameters, 20 bytes each with gradient, optimizer and average: 18 GB in all.
"""

import ml_collections


def get_config():
    """The published sizes; the rates of a fine-tuning, which were not published."""
    c = ml_collections.ConfigDict()
    c.stage = "decoder"
    c.init_from = ""  # folder of the parameters to start from
    c.seed = 0
    c.steps = 20_000
    c.batch_size = 256
    c.grad_accum = 1
    c.compute_dtype = "bfloat16"
    c.data = dict(source="records", path="runs/karlo/records/train", feed="tf")
    # 768 numbers and 77 tokens, which the records decide
    c.model = dict(
        channels=320,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        attention_resolutions=(32, 16, 8),
        head_channels=64,
        caption="clip_states",
        text_width=1536,
        num_clip_tokens=4,
        learned_sigma=True,
        scale_shift=True,
        remat=True,
    )
    c.diffusion = dict(
        schedule="cosine",
        num_steps=1000,
        prediction="epsilon",
        sampler="ddpm",  # the last four: as Karlo draws
        sampling_steps=25,
        variance="learned_range",
        guidance=8.0,
    )
    c.stage_options = dict(
        drop_clip=0.1,
        drop_text=0.5,
        embedding="raw",
        preview_steps=25,
        preview_guidance=4.0,
    )
    c.optimizer = dict(
        learning_rate=1e-5,
        weight_decay=0.0,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        warmup_steps=500,
        schedule="constant",
        grad_clip_norm=1.0,
    )
    c.ema_decay = 0.999
    c.mesh = dict(data=-1, fsdp=8, tensor=1)
    c.sharding_rules = ()
    c.log_every = 50
    c.checkpoint = dict(every=1000, keep=2)
    c.preview = dict(every=1000, count=16)
    return c
