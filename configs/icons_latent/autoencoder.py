"""The autoencoder of icons: 32x32 images to latents of 8x8x4, and back.

    python -m unclip_jax.train --config=configs/icons_latent/autoencoder.py \\
        --workdir=runs/icons_latent/autoencoder

Needs nothing but the icons, which are drawn on the way.
"""

from configs import common


def get_config():
    """Stable Diffusion's autoencoder with an eighth of its channels."""
    c = common.train("autoencoder", steps=1500, batch_size=32, ema_decay=0.995)
    c.data = common.icons(split="train", feed="arrays", vocab_size=640)
    c.model = dict(channels=16, channel_mult=(1, 2, 4), num_res_blocks=1, norm_groups=8)
    c.stage_options = dict(kl_weight=1e-3)
    c.optimizer = common.adamw(2e-3, 100, "cosine", b2=0.99)
    c.log_every = 25
    c.checkpoint = dict(every=500)
    c.preview = dict(every=500)
    c.evaluators = dict(
        reconstruction=dict(every=500, count=512, data=dict(split="held_out"))
    )
    return c
