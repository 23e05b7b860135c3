"""The decoder on icons: CLIP image embedding and caption -> 32x32 picture.

    python -m unclip_jax.train --config=configs/icons/decoder.py \
        --workdir=runs/icons/decoder
"""

import ml_collections


def get_config():
    """The paper's UNet and conditioning, made cheap enough for two CPU cores.

    Patches of 8 leave a 4x4 grid of 192 numbers each. A grid that coarse cannot
    carry the noise that epsilon-prediction asks for through 128 channels, so this
    decoder predicts x0; configs/paper predicts epsilon.
    """
    c = ml_collections.ConfigDict()
    c.stage = "decoder"
    c.seed = 0
    c.steps = 1500
    c.batch_size = 64
    c.grad_accum = 1
    c.compute_dtype = "float32"
    c.data = dict(source="records", path="runs/icons/records/train", feed="arrays")
    c.model = dict(
        channels=128,
        channel_mult=(1,),
        num_res_blocks=2,
        attention_resolutions=(4,),
        head_channels=32,
        patch_size=8,
        learned_sigma=False,
        text_width=64,
        text_depth=1,
        text_heads=2,
    )
    c.diffusion = dict(
        schedule="cosine",
        num_steps=1000,
        prediction="x0",
        sampling_steps=25,
        guidance=1.5,
    )
    c.stage_options = dict(
        drop_clip=0.1,
        drop_text=0.5,
        embedding="standardize",
        preview_steps=25,
        preview_guidance=2.0,
    )
    c.optimizer = dict(
        learning_rate=2e-3,
        weight_decay=0.0,
        b1=0.9,
        b2=0.99,
        eps=1e-8,
        warmup_steps=100,
        schedule="cosine",
        grad_clip_norm=1.0,
    )
    c.ema_decay = 0.995
    c.mesh = dict(data=-1, fsdp=1, tensor=1)
    c.sharding_rules = ()
    c.log_every = 25
    c.checkpoint = dict(every=250, keep=2)
    c.preview = dict(every=500, count=16)
    return c
