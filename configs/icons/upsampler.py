"""The upsampler on icons: 32x32 -> 64x64 pictures.

    python -m unclip_jax.train --config=configs/icons/upsampler.py \\
        --workdir=runs/icons/upsampler

About two minutes on two CPU cores. Needs no CLIP; exported next to a decoder of 32x32
pictures, it makes text2image draw 64x64.
"""

import ml_collections


def get_config():
    """The paper's 64 -> 256 stage: crops, blurred conditioning, no attention, DDIM.

    Small as it is, it predicts x0, as what it adds to the enlarged picture;
    configs/paper predicts noise.
    """
    c = ml_collections.ConfigDict()
    c.stage = "upsampler"
    c.seed = 0
    c.steps = 300
    c.batch_size = 32
    c.grad_accum = 1
    c.compute_dtype = "float32"
    c.data = dict(
        source="icons",
        split="train",
        image_size=64,
        nouns=24,
        colours=8,
        backgrounds=8,
        feed="arrays",
        tokenizer="",
        vocab_size=640,
        context_length=16,
        degradation=dict(kind="crop", crop=32),
    )
    c.model = dict(
        low_res_size=32,
        channels=48,
        channel_mult=(1,),
        num_res_blocks=2,
        norm_groups=8,
        patch_size=2,
        residual=True,
        scale_shift=False,
    )
    c.diffusion = dict(
        schedule="cosine",
        num_steps=1000,
        prediction="x0",
        min_snr_gamma=5.0,
        sampling_steps=5,
    )
    # icons of 32 pixels are the areas' means of larger ones; photos, see configs/paper
    c.stage_options = dict(
        downsample="area", blur_probability=0.5, blur_kernel=3, blur_sigma=0.6
    )
    c.optimizer = dict(
        learning_rate=2e-3,
        weight_decay=0.0,
        b1=0.9,
        b2=0.99,
        eps=1e-8,
        warmup_steps=50,
        schedule="cosine",
        grad_clip_norm=1.0,
    )
    c.ema_decay = 0.99
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.sharding_rules = ()
    c.log_every = 50
    c.checkpoint = dict(every=150, keep=2)
    c.preview = dict(every=150, count=16)
    return c
