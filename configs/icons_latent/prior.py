"""The diffusion prior on the records of this folder; the icons' own does as well.

    python -m unclip_jax.train --config=configs/icons_latent/prior.py \\
        --workdir=runs/icons_latent/prior
"""

from configs import common
from configs.icons import prior as icons


def get_config():
    """As the icons', which knows nothing of latents."""
    c = icons.get_config()
    c.data = common.records("icons_latent", feed="arrays")
    c.evaluators = common.score_prior("icons_latent", every=200, count=256)
    return c
