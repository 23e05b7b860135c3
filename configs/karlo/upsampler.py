"""Karlo's super-resolution, 64 -> 256 pixels: fine-tunes the public weights.

    python -m unclip_jax.train --config=configs/karlo/upsampler.py \\
        --config.init_from=KARLO --workdir=runs/karlo/upsampler

KARLO is the folder of its pipeline in diffusers' format, or a native export with an
upsampler_256. Karlo takes seven steps, the last of them with a second network; this
trains the first (super_res_first), which can take all of them. Without init_from it
starts from nothing.

692M parameters, 20 bytes each with gradient, optimizer and average: 14 GB in all.
"""

import ml_collections


def get_config():
    """The published sizes; the rates of a fine-tuning, which were not published."""
    c = ml_collections.ConfigDict()
    c.stage = "upsampler"
    c.init_from = ""  # folder of the parameters to start from
    c.seed = 0
    c.steps = 20_000
    c.batch_size = 256
    c.grad_accum = 1
    c.compute_dtype = "bfloat16"
    c.data = dict(  # pictures of 256 pixels, of which crops of a quarter are seen
        source="records",
        path="data/256/train",
        feed="tf",
        degradation=dict(kind="crop", crop=64),
    )
    c.model = dict(
        low_res_size=64,
        channels=320,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=3,
        resize="bicubic",
        scale_shift=False,
        learned_sigma=False,
        remat=True,
    )
    c.diffusion = dict(
        schedule="cosine",
        num_steps=1000,
        prediction="epsilon",
        min_snr_gamma=None,
        sampling_steps=7,
        sampler="ddpm",
        variance="fixed_small",
    )
    c.stage_options = dict(
        downsample="bicubic", blur_probability=0.0, blur_kernel=3, blur_sigma=0.6
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
