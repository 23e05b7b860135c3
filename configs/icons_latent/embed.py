"""Icons with their CLIP embeddings and the latents of an autoencoder.

    python -m unclip_jax.embed --config=configs/icons_latent/embed.py \\
        --workdir=runs/icons_latent/records

The CLIP is that of configs/icons/clip.py.
"""

from configs.icons import embed as icons


def get_config():
    """As the icons', and latents as Gaussians."""
    c = icons.get_config()
    c.autoencoder = "runs/icons_latent/autoencoder"
    c.latent_std = True
    return c
