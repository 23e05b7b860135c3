"""The paper's kind of decoder on icons: epsilon and a learned variance, 32x32 images.

    python -m unclip_jax.train --config=configs/icons/decoder_epsilon.py \\
        --workdir=runs/icons/decoder_epsilon

Made for one GPU. Takes the place of configs/icons/decoder.py; the other stages stay as
they are, whatever their stage_options.embedding, because embeddings pass from a prior
to a decoder as CLIP makes them.
"""

import ml_collections


def get_config():
    """Table 3's recipe, column "64", at icon size; what is smaller is the model.

    configs/icons/decoder.py predicts x0 because its 4x4 grid, patches of 8 pixels,
    cannot carry the noise. This one works on pixels, as the paper's does.
    """
    c = ml_collections.ConfigDict()
    c.stage = "decoder"
    c.seed = 0
    c.steps = 8000
    c.batch_size = 128
    c.grad_accum = 1
    c.compute_dtype = "bfloat16"
    c.data = dict(source="records", path="runs/icons/records/train", feed="arrays")
    c.model = dict(
        channels=64,
        channel_mult=(1, 2, 3),
        num_res_blocks=2,
        attention_resolutions=(8,),
        head_channels=32,
        learned_sigma=True,
        text_width=64,
        text_depth=1,
        text_heads=2,
    )
    c.diffusion = dict(
        schedule="cosine",
        num_steps=1000,
        prediction="epsilon",
        sampler="ddpm",
        sampling_steps=250,
        variance="learned_range",
        guidance=1.5,
    )
    c.stage_options = dict(
        drop_clip=0.1,
        drop_text=0.5,
        embedding="unit_scaled",
        preview_steps=50,
        preview_guidance=2.0,
    )
    c.optimizer = dict(
        learning_rate=5e-4,
        weight_decay=0.0,
        b1=0.9,
        b2=0.999,
        eps=1e-8,
        warmup_steps=200,
        schedule="constant",
        grad_clip_norm=1.0,
    )
    c.ema_decay = 0.999
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.sharding_rules = ()
    c.log_every = 50
    c.checkpoint = dict(every=1000, keep=2)
    c.preview = dict(every=1000, count=16)
    return c
