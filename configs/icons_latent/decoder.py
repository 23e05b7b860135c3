"""The decoder of latents on icons: embedding and caption -> 8x8x4.

    python -m unclip_jax.train --config=configs/icons_latent/decoder.py \\
        --workdir=runs/icons_latent/decoder
"""

from configs import common
from configs.icons import decoder as icons


def get_config():
    """As the icons', with patches of 2 latents instead of 8 pixels: the same grid."""
    c = icons.get_config()
    c.data = common.records("icons_latent", feed="arrays")
    c.autoencoder = "runs/icons_latent/autoencoder"  # for previews
    c.model.image_channels = 4
    c.model.patch_size = 2
    c.model.refine_channels = 0  # latents are no pixels
    c.diffusion.guidance_interval = None
    return c
