"""Your images as Stable unCLIP sees them: embeddings, text states and latents.

    python -m unclip_jax.embed --config=configs/stable_unclip/embed.py \\
        --config.data.path=PICTURES --workdir=runs/stable_unclip/records

The folder is the published one; stable-diffusion-2-1-unclip-small does as well. Latents
are Gaussians, of which both numbers are kept: training draws from them.
"""

from configs.kandinsky22 import embed as kandinsky


def get_config():
    """As Kandinsky's, of another folder, at the size that it was trained at."""
    c = kandinsky.get_config()
    c.clip = c.autoencoder = "stable-diffusion-2-1-unclip"
    c.data.image_size = 768
    c.image_size = 96
    c.latent_std = True
    return c
