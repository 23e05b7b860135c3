"""The decoder on icons: CLIP image embedding and caption -> 32x32 picture.

    python -m unclip_jax.train --config=configs/icons/decoder.py \
        --workdir=runs/icons/decoder
"""

from configs import common


def get_config():
    """The paper's UNet and conditioning, made cheap enough for two CPU cores.

    Patches of 8 leave a 4x4 grid of 192 numbers each. A grid that coarse cannot
    carry the noise that epsilon-prediction asks for through 128 channels, so this
    decoder predicts x0; configs/paper predicts epsilon. Three convolutions over pixels
    smooth what the patches leave.
    """
    c = common.train("decoder", steps=1500, batch_size=64, ema_decay=0.995)
    c.data = common.records("icons", feed="arrays")
    c.model = dict(
        channels=128,
        channel_mult=(1,),
        num_res_blocks=2,
        attention_resolutions=(4,),
        head_channels=32,
        patch_size=8,
        refine_channels=16,
        learned_sigma=False,
        text_width=64,
        text_depth=1,
        text_heads=2,
    )
    c.diffusion = dict(
        prediction="x0",
        sampling_steps=25,
        guidance=1.5,
        guidance_interval=(250, 999),  # in the last steps it only adds grain
    )
    c.stage_options = dict(preview_guidance=2.0)
    c.optimizer = common.adamw(2e-3, 100, "cosine", b2=0.99)
    c.log_every = 25
    c.checkpoint = dict(every=250)
    c.preview = dict(every=500)
    return c
