"""The upsampler on icons: 32x32 -> 64x64 pictures.

    python -m unclip_jax.train --config=configs/icons/upsampler.py \\
        --workdir=runs/icons/upsampler

About two minutes on two CPU cores. Needs no CLIP; exported next to a decoder of 32x32
pictures, it makes text2image draw 64x64.
"""

from configs import common


def get_config():
    """The paper's 64 -> 256 stage: crops, blurred conditioning, no attention, DDIM.

    Small as it is, it predicts x0, as what it adds to the enlarged picture;
    configs/paper predicts noise.
    """
    c = common.train("upsampler", steps=300, batch_size=32, ema_decay=0.99)
    c.data = common.icons(
        image_size=64,
        split="train",
        feed="arrays",
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
    c.diffusion = dict(prediction="x0", min_snr_gamma=5.0, sampling_steps=5)
    # icons of 32 pixels are the areas' means of larger ones; photos, see configs/paper
    c.stage_options = dict(downsample="area")
    c.optimizer = common.adamw(2e-3, 50, "cosine", b2=0.99)
    c.checkpoint = dict(every=150)
    c.preview = dict(every=150)
    return c
